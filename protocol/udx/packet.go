package udx

import (
	"encoding/binary"
	"errors"
)

// Sizes in bytes.
const (
	headerSize = 20
	// overhead is what a packet needs besides its payload: IPv4, UDP and the header.
	overhead = 20 + 8 + headerSize
	// baseMTU is the size of a packet, with its IP header, that every path is taken to
	// carry; maxMTU the largest that is tried.
	baseMTU = 1200
	maxMTU  = 1500
)

// flags are the type of a packet.
type flags byte

const (
	flagData flags = 1 << iota
	flagEnd
	flagSACK
	flagMessage
	flagDestroy
	flagHeartbeat
)

// header is the beginning of each packet.
type header struct {
	flags flags
	// skip is how many bytes lie between the header and the payload: SACK blocks, or
	// zeros.
	skip   uint8
	id     uint32 // of the receiver's stream
	window uint32 // bytes for which the sender has room
	seq    uint32 // of this packet, if it has one, or of the next
	ack    uint32 // the next that is expected
}

const maxBlocks = 50 // that are sent

// block is a run of packets that came beyond a gap: start <= seq < end.
type block struct{ start, end uint32 }

func (b block) len() uint32 { return b.end - b.start }

// before tells whether a comes before b, in serial number arithmetic.
func before(a, b uint32) bool { return int32(a-b) < 0 }

// IsPacket tells whether a datagram has the form of a UDX packet, and for which stream
// it is.
func IsPacket(b []byte) (id uint32, ok bool) {
	if len(b) < headerSize || b[0] != 0xff || b[1] != 1 {
		return 0, false
	}
	return binary.LittleEndian.Uint32(b[4:]), true
}

var errPacket = errors.New("udx: not a packet")

// appendHeader appends the 20 bytes of h.
func appendHeader(b []byte, h header) []byte {
	b = append(b, 0xff, 1, byte(h.flags), h.skip)
	b = binary.LittleEndian.AppendUint32(b, h.id)
	b = binary.LittleEndian.AppendUint32(b, h.window)
	b = binary.LittleEndian.AppendUint32(b, h.seq)
	return binary.LittleEndian.AppendUint32(b, h.ack)
}

// parseHeader takes the header off b. blocks is where SACK blocks are, if there are any,
// 8 bytes each; both alias b.
func parseHeader(b []byte) (h header, blocks, payload []byte, err error) {
	id, ok := IsPacket(b)
	if !ok {
		return h, nil, nil, errPacket
	}
	h = header{
		flags: flags(b[2]), skip: b[3], id: id,
		window: binary.LittleEndian.Uint32(b[8:]),
		seq:    binary.LittleEndian.Uint32(b[12:]),
		ack:    binary.LittleEndian.Uint32(b[16:]),
	}
	b = b[headerSize:]
	if int(h.skip) > len(b) {
		return h, nil, nil, errPacket
	}
	payload = b[h.skip:]
	if h.flags&flagSACK != 0 {
		blocks = b[:h.skip]
		if h.skip == 0 {
			blocks, payload = b, nil
		}
		if len(blocks)%8 != 0 {
			return h, nil, nil, errPacket
		}
	}
	return h, blocks, payload, nil
}

func appendBlock(b []byte, k block) []byte {
	b = binary.LittleEndian.AppendUint32(b, k.start)
	return binary.LittleEndian.AppendUint32(b, k.end)
}

func blockAt(b []byte) block {
	return block{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])}
}

// Package bench measures whole transfers: a seller and a buyer in a process each,
// over TCP on the loopback interface.
package bench

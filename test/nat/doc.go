// Package nat runs our programs, and stock peers, behind real routers: in network namespaces
// with the lab of ../shared/labs/natlab. As root; it needs iproute2, nftables and iptables,
// and Node for stock peers.
package nat

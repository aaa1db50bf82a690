// Package interop runs stock npm peers against ours, over TCP, in both
// directions. Its tests need Node and `npm ci` in this directory, and the build
// tag interop.
package interop

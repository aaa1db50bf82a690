// Package cache has a map that forgets. It is not safe for concurrent use.
package cache

import "time"

// Cache is a map that forgets: what is older than its age, about, and the older half when it
// is full.
type Cache[K comparable, V any] struct {
	most   int
	age    time.Duration
	young  map[K]V
	old    map[K]V
	turned time.Time
}

// New returns a map of at most so many values, each of which is there for about two thirds of
// age at least, and for twice that at most.
func New[K comparable, V any](most int, age time.Duration) Cache[K, V] {
	return Cache[K, V]{most: most, age: age, turned: time.Now(), young: map[K]V{}}
}

func (c *Cache[K, V]) turn(now time.Time) {
	for range 2 {
		since := now.Sub(c.turned)
		if since < c.age*2/3 && len(c.young) < c.most/2 {
			return
		}
		if c.turned = now; since >= c.age*4/3 {
			c.turned = now.Add(-c.age * 2 / 3) // both halves are too old
		}
		c.old, c.young = c.young, map[K]V{}
	}
}

// Get returns the value of a key, if it is there.
func (c *Cache[K, V]) Get(k K) (v V, ok bool) {
	c.turn(time.Now())
	if v, ok = c.young[k]; !ok {
		v, ok = c.old[k]
	}
	return v, ok
}

// Set gives a key a value.
func (c *Cache[K, V]) Set(k K, v V) {
	c.turn(time.Now())
	delete(c.old, k)
	c.young[k] = v
}

// Drop forgets a key.
func (c *Cache[K, V]) Drop(k K) {
	delete(c.young, k)
	delete(c.old, k)
}

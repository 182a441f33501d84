package client

import (
	"context"
	"iter"
	"net/url"
	"strconv"

	"tidemark"
)

// pageSize is how many entries of a list are asked for at once: as many as the server gives.
const pageSize = 1000

// list reads a list part by part.
func list[T any](ctx context.Context, c *Client, path string, also url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for cursor := ""; ; {
			q := url.Values{"limit": {strconv.Itoa(pageSize)}}
			for k, v := range also {
				q[k] = v
			}
			if cursor != "" {
				q.Set("cursor", cursor)
			}
			p, err := get[tidemark.Page[T]](ctx, c, path+"?"+q.Encode())
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, v := range p.Items {
				if !yield(v, nil) {
					return
				}
			}
			if cursor = p.Next; cursor == "" {
				return
			}
		}
	}
}

// only is the parameter that narrows a list, if it has a value.
func only(name, value string) url.Values {
	if value == "" {
		return nil
	}
	return url.Values{name: {value}}
}

// Collect reads a list to its end. An empty list is not nil.
func Collect[T any](seq iter.Seq2[T, error]) ([]T, error) {
	all := []T{}
	for v, err := range seq {
		if err != nil {
			return all, err
		}
		all = append(all, v)
	}
	return all, nil
}

// First returns at most the first n entries of a list.
func First[T any](n int, seq iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		left := n
		for v, err := range seq {
			if left--; !yield(v, err) || left == 0 {
				return
			}
		}
	}
}

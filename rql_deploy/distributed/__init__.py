"""Work over processes and machines: Ray and the sweep."""

"""Gates: builder, adders, accumulators, activations, bit-sliced simulation. Knows integers, no network."""

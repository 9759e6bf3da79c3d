"""What the method is worth: one benchmark a module, each with its own JSON and table under `benchmarks/results/`."""

"""The main job on real data, small enough to run anywhere: Fashion-MNIST and two classic networks."""

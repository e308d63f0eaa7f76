"""The parts of a training run: model, inputs, frozen features, optimisation, processes, files."""

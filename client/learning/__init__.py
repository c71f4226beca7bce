"""What a node computes: models, training, ascent, recovery, distillation, measuring."""

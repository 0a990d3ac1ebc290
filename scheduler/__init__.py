"""Schedule which cores receive logits and which cores train: model, policies, controller, simulator and live loop."""

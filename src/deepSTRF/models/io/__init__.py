"""Saving, loading and sharing models: checkpoints, model cards, the hub, weights of earlier packages.

Models save and load themselves: `NeuralModel.save_pretrained`, `NeuralModel.from_pretrained`,
`NeuralModel.push_to_hub`.
"""

from deepSTRF.models.io.legacy import load_public_state_dict

__all__ = ["load_public_state_dict"]

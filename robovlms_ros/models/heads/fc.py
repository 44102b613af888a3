"""The fully connected policy head: each frame by itself, no history."""

from torch import Tensor, nn

from robovlms_ros.models.heads.base import DownSample, PolicyHead


class FCHead(PolicyHead):
    """Two linear layers per frame. `window`, `num_layers` and `dropout` of other heads have no
    meaning here."""

    def __init__(
        self,
        in_features: int,
        horizon: int,
        hidden_size: int = 1024,
        down_sample: DownSample = "none",
        latent: int = 1,
        arm_dims: int = 6,
    ):
        super().__init__(in_features, horizon, hidden_size, down_sample, latent, arm_dims)
        width = in_features * latent
        self.mlp = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, hidden_size * latent))
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def aggregate(self, tokens: Tensor) -> Tensor:
        return self.mlp(tokens.flatten(2))

"""The LSTM policy head (RoboVLMs' policy-head formulation, arXiv 2412.14058)."""

from torch import Tensor, nn

from robovlms_ros.models.heads.base import DownSample, HeadError, PolicyHead


class LSTMHead(PolicyHead):
    """An LSTM from the zero state over the window, its output read at every frame."""

    def __init__(
        self,
        in_features: int,
        horizon: int,
        window: int,
        hidden_size: int = 1024,
        num_layers: int = 4,
        dropout: float = 0.0,
        down_sample: DownSample = "none",
        latent: int = 1,
        arm_dims: int = 6,
    ):
        super().__init__(in_features, horizon, hidden_size, down_sample, latent, arm_dims)
        if dropout and num_layers == 1:
            raise HeadError(
                f"action_head.dropout = {dropout}: an LSTM of one layer has no place for it. "
                "Set dropout to 0 or num_layers to 2 or more."
            )
        self.rnn = nn.LSTM(
            in_features * latent, hidden_size * latent, num_layers=num_layers, dropout=dropout, batch_first=True
        )

    def aggregate(self, tokens: Tensor) -> Tensor:
        return self.rnn(tokens.flatten(2))[0]

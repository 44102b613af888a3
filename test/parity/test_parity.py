"""Every recorded case of the reference implementation is reproduced.

- heads, whole tiny models, wrappers and utilities within 1e-5 in float32 (5e-5 with the attention
  that was not recorded), losses within 1e-6, bfloat16 within 2e-2, each times max(1, size);
- gripper decisions and discrete ids exactly;
- a case of a kind that no check knows fails.
"""

from pathlib import Path

import parity_heads
import parity_utils
import parity_vla
import parity_wrapper
import pytest
import torch
from parity_case import load_case


@pytest.mark.parity
def test_case(case_path: Path | None) -> None:
    assert case_path is not None, "the folder of recorded cases holds none"
    torch.set_num_threads(1)
    case, area = load_case(case_path), case_path.parent.name
    if area == "heads":
        parity_heads.check(case)
    elif area == "utils":
        parity_utils.check(case)
    elif area == "vla":
        parity_vla.check(case, case_path)
    else:
        parity_wrapper.check(case, case_path)

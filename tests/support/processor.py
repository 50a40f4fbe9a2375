"""What this machine's processor can do; `PIXVEC_TEST_CPU=baseline` hides bf16, AVX-512 and AMX.

A test that needs one of them is marked, and skipped elsewhere with the reason; another test, marked with the
opposite or with neither, shows what happens there.
"""

from __future__ import annotations

import pytest

from pixvec_server.backends.select import computes_bf16
from pixvec_server.cpu import processor

PROCESSOR = processor()
HAS_BF16 = computes_bf16()

needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason=f"the processor has no bf16: {PROCESSOR}")
needs_no_bf16 = pytest.mark.skipif(HAS_BF16, reason=f"the processor has bf16: {PROCESSOR}")

"""pytest -m gpu: on a real GPU, the same checks as test_cupy_backend.py makes on its stand-in, and compute-sanitizer's.

Fresh random data every time; every kernel and the whole backend against float64, recorded graphs against the eager run.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import test_cupy_backend as shared

from tinyroberta.backends import load_backend

pytestmark = pytest.mark.gpu

CHECKS = (
    "test_a_launch_gives_every_parameter_by_its_name",
    "test_layer_norm", "test_embed", "test_linear", "test_cut", "test_a_norm_that_cuts_is_a_norm_and_a_cut",
    "test_sliced_products_equal_their_definition", "test_sliced_products_in_large_blocks_equal_their_definition",
    "test_sliced_rows_that_are_not_finite_are_theirs_alone", "test_sums",
    "test_a_sliced_row_has_the_same_bits_in_any_batch", "test_a_sliced_row_too_wide_for_int32_is_summed_in_pieces",
    "test_the_deepest_sum_of_digit_products_fits_in_int32", "test_outlying_norm_gains_cost_no_accuracy", "test_attention",
    "test_attention_of_64_numbers_a_head", "generation",
    "test_attention_with_a_bias_and_a_head_mask", "test_a_row_that_may_read_nothing_reads_everything_alike",
    "test_attention_reads_a_cache", "test_activation", "test_every_class_eager_recorded_and_replayed",
    "test_a_replay_is_equal_to_the_eager_run", "test_recordings_are_bounded", "test_recordings_take_turns_at_one_memory",
    "test_recordings_memory_is_bounded", "test_a_recording_is_of_one_configuration", "test_features", "test_other_families",
    "test_labels", "test_a_cache_gives_what_the_whole_text_gives", "test_an_encoder_and_a_decoder", "test_logits_to_keep",
    "test_tied_weights_are_moved_once", "test_outliers_are_not_infinite_in_high",
    "test_what_cross_attention_reads_is_not_infinite_in_high",
    "test_an_activation_that_leaves_the_range_of_f16", "test_a_head_mask_that_leaves_the_range_of_f16",
    "test_a_cache_of_f16_takes_what_f16_does_not_hold",
    "test_texts_without_padding_through_every_head", "test_tasks_answer_as_the_definition",
    "test_a_vector_has_the_same_bits_in_any_company",
    "test_a_trace_changes_no_bit", "test_norms_whose_gains_the_weights_took_in_are_shown_as_the_checkpoint_has_them",
    "test_a_trace_replaces", "test_a_trace_plays_no_recording_and_leaves_them", "test_a_number_past_f16_replaces_all_the_same",
    "test_settings_that_a_gpu_does_not_do", "test_a_route_that_there_is_not",
    "test_the_route_is_described",
)  # fmt: skip
globals().update({name: getattr(shared, name) for name in CHECKS})


@pytest.fixture(scope="module")
def cupy() -> Any:
    return pytest.importorskip("cupy")


@pytest.fixture
def ops(cupy: Any) -> Any:  # noqa: ARG001
    backend: Any = load_backend("cupy")
    shared.use(backend, "own")
    return backend


@pytest.fixture
def order() -> str:
    return "the GPU's own"


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_compute_sanitizer_is_silent(ops: Any, tool: str) -> None:  # noqa: ARG001
    command = shutil.which("compute-sanitizer")
    if command is None:
        pytest.skip("compute-sanitizer is not installed")
    checks = [command, "--tool", tool, "--error-exitcode", "1", sys.executable, "-m", "cuda_on_cpu.sanitize", "none"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(checks, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clean" in done.stdout

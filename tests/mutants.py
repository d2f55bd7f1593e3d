"""Mutants: wrong versions of single lines, each with the test that must fail on it.

    python tests/mutants.py [--only NAME-OR-NUMBER ...] [--sample TEXT --count 6] [--list] [--folder KEPT]

Every mutant is tried alone in a scratch copy of the checkout, which `--folder` keeps with what was built in it. A
test that passes on its mutant, a test that fails without it, and an old text that does not occur exactly once are
failures. A test is `cpp:NAME`, a program of tests/cpp, or arguments of pytest. C++ is built only where the mutant or
its test needs it. The file is long because it is a table.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One wrong version: in `file`, `old` becomes `new`, and the test `kill` must fail."""

    name: str
    file: str
    old: str
    new: str
    kill: str


def killed_by(kill: str, file: str, *changes: tuple[str, str, str]) -> list[Mutant]:
    """Mutants of one file that one test kills: (name, old text, new text)."""
    return [Mutant(name, file, old, new, kill) for name, old, new in changes]


CERTIFICATES = "csrc/cpu/engine/certificates"
BOUNDS = "path_gaba_.data(),\n                                       visit->floor,"

TRAINER, DISTILL = "tests/ops/test_sdmlp_trainer.py", "tests/ops/test_distill.py"
METHODS, CHECKPOINT = "tests/train/test_methods.py", "tests/train/test_checkpoint.py"
RESUMED = f"{CHECKPOINT}::test_stop_again_and_again"
OWN, REFUSED = "tests/train/test_own_run.py", "tests/train/test_refused_files.py"

# fmt: off
MUTANTS = [
    # Bounds of the engine's certificates.
    *killed_by(
        "cpp:test_certificates", f"{CERTIFICATES}/proof.cpp",
        ("half-of-delta", "- (snapshot.delta +", "- (0.5f * snapshot.delta +"),
        ("strayed-dropped", "(snapshot.delta + record.strayed)", "snapshot.delta"),
        ("room-without-slack", "return -(slack_ + shift);", "return -shift;"),
        ("shift-rises-with-the-threshold", "? -std::max(", "? std::max("),
        ("shift-gains-by-negative-coefficients", "std::max(snapshot.gaba_min, 0.f)", "std::fabs(snapshot.gaba_min)"),
        ("shift-0-where-the-threshold-falls", ": -change;", ": 0.f;"),
        ("candidates-without-slack", f"end - begin, {BOUNDS} slack_", f"end - begin, {BOUNDS} 0.f"),
        ("movers-without-slack", "snapshot.movers, visit->floor, slack_", "snapshot.movers, visit->floor, 0.f"),
        ("replaced-movers-forgotten", "for (const int32_t place : replaced_)",
         "for (const int32_t place : std::vector<int32_t>())"),
        ("outside-margin-unchecked", "if (!(record.outside < need(record, snapshot, visit.floor))) return false;", ""),
        ("blocks-not-looked-at", "!(visit.margins[end / kBlock] < least)", "false"),
        ("far-margin-before-the-blocks", "const float margin = rest(*visit),", "const float margin = record.outside,"),
        ("far-neurons-forgotten", "if (!examine_far(&visit) || !score(&visit)) return false;", ""),
        ("far-peak-ignored", "k < record.known ? far.peak[k] : record.strayed", "record.strayed"),
        ("far-strayed-ignored", "far.peak[k] : record.strayed", "far.peak[k] : 0.f"),
        ("far-list-by-its-drift-alone", "std::max(far.most_peak, record.strayed) < limit", "0.f < limit"),
        ("far-neuron-listed-twice", "|| listed(*visit, neuron, 0))", ")"),
        ("far-bound-listed-twice", "if (!listed(*visit, neuron, static_cast<int>(k_) + 1)) add", "add"),
        ("far-bounds-without-slack", f"extras, {BOUNDS} slack_", f"extras, {BOUNDS} 0.f"),
    ),
    *killed_by(
        "cpp:test_certificates", f"{CERTIFICATES}/record.cpp",
        ("blocks-by-their-own-margin", "margins[b] = std::max(margins[b], margins[b + 1]);", ";"),
        ("overflow-leaves-no-margin", "*outside = std::max(*outside, margin[i]);", ""),
        ("far-known-dropped", "static_cast<int32_t>(far_[newest_].neuron.size())", "0"),
    ),
    *killed_by(
        "cpp:test_certificates", f"{CERTIFICATES}/movement.cpp",
        ("snapshot-forgets-the-era-so-far", "if (!(drift <= snapshot.delta)) snapshot.delta = drift;\n  });", "});"),
        ("base-of-another-snapshot", "base[s] = static_cast<float>(past);", "base[s] = path;"),
        ("drift-of-one-snapshot", "snapshots_[s].delta = delta.value[s];", "snapshots_[0].delta = delta.value[0];"),
        ("far-drift-stands-still", "list.drift[at] = drift;", ""),
        ("far-peak-stands-still", "if (!(drift <= list.peak[at])) list.peak[at] = drift;", ""),
        ("far-drift-lost-where-the-list-is-full", " && !(far.drift <= rest)) rest = far.drift;", ") continue;"),
        ("far-bits-outlive-their-list", "in_far_[j] &= static_cast<uint16_t>(~(1u << slot));", "(void)j;"),
        ("far-list-outlives-its-snapshot", "  forget_far(newest_);\n", ""),
    ),
    *killed_by(
        "cpp:test_certificates", f"{CERTIFICATES}/certificates.cpp",
        ("slack-0", "static_cast<float>(2 * score +", "0 * static_cast<float>(2 * score +"),
        ("slack-of-one-score", "static_cast<float>(2 * score +", "static_cast<float>(score +"),
        ("era-forgets-distances", "past_[j] += distance_[j];", ""),
        ("far-list-for-a-collective-drift", "neurons_ / kFarShare", "neurons_"),
        ("far-list-in-the-all-active-phase", "all_move ? 0 : far_most();", "far_most();"),
    ),
    *killed_by(
        "cpp:test_certificates", f"{CERTIFICATES}/certificates.h",
        ("bounds-without-the-way-back", "past_[neuron] - distance_[neuron]", "past_[neuron]"),
        ("later-movers-count-as-covered", "place >= 0 && place < snapshot.movers &&", "place >= 0 &&"),
        ("replaced-movers-count-as-covered", " && mover_since_[place] <= snapshot.id;", ";"),
    ),
    *killed_by(
        "cpp:test_engine_kernels", "csrc/cpu/engine/era.h",
        ("movement-not-raised-for-the-input", "kMovementGrowth = 1.0 + 2.1e-4", "kMovementGrowth = 1.0 + 1e-4"),
        ("path-dropped-between-readings", "++unread[at];\n      return before + move(row);",
         "++unread[at];\n      move(row);\n      return before;"),
        ("distance-at-the-entry-dropped", "distance.push_back(before);", "distance.push_back(0);"),
        ("step-without-the-path-so-far", "if (!keep) return before + move(row);", "if (!keep) return move(row);"),
        ("old-place-taken-late", "return distance[at] + move(&rows[at * D]);", "return distance[at] + move(row);"),
    ),
    *killed_by(
        "cpp:test_team", "csrc/cpu/threads/team.cpp",
        ("exception-of-a-chunk-lost", "if (error_) std::rethrow_exception", "if (false) std::rethrow_exception"),
    ),
    # Kernels: the engine's losses and steps, operations, the check of sparse structs.
    *killed_by(
        f"{TRAINER}::test_agrees_with_the_dense_specification", "csrc/cpu/engine/loss.cpp",
        ("engine-kd-without-T-squared", "row.kd_logits = t * t * kl;", "row.kd_logits = t * kl;"),
        ("engine-kd-gradient-without-T", "(1 - cfg.lam) * t / batch", "(1 - cfg.lam) / batch"),
        ("engine-lam-on-the-wrong-side", "(1 - cfg.alpha) * cfg.lam / batch",
         "(1 - cfg.alpha) * (1 - cfg.lam) / batch"),
        ("engine-silent-units-forgotten", "std::log(units) + std::log1p(sum / units)", "std::log1p(sum)"),
        ("engine-ce-not-weighted", "const double scale = ce_weight / batch;", "const double scale = 1.0 / batch;"),
    ),
    *killed_by(
        f"{TRAINER}::test_agrees_with_the_dense_specification", "csrc/cpu/engine/update.cpp",
        ("engine-clips-the-velocity", "    step = cfg.lr;\n", "    step = cfg.lr * scale;\n"),
        ("engine-counts-batches", "counts[j] += active;", "counts[j] += 1;"),
        ("penalty-of-half-a-row-in-the-norm", "square_norm(dw, D) + kernel.square_norm(dv, Cp);",
         "square_norm(dw, D);"),
        ("untouched-rows-not-in-the-norm", "chunk.norm2 += pull_norm2[next];\n}", ";\n}"),
    ),
    Mutant("rows-in-motion-for-ever", "csrc/cpu/engine/update.cpp", "in_motion[j] = moves || output_moves;",
           "in_motion[j] = true;",
           "tests/ops/test_engine_state.py::test_a_resumed_run_with_momentum_is_bitwise_the_same"),
    *killed_by(
        "tests/ops/test_distill.py -k far_below", "csrc/cpu/ops/distill/distill.inl",
        ("largest-unit-never-below-0", "double largest = count < units ? 0 : h[0];", "double largest = 0;"),
        ("partition-cancels", "large |= u.count == units &&", "large |= false &&"),
    ),
    Mutant("exp-never-0", "csrc/cpu/simd/exponential.h", "x[i] < -746.0 ? 0.0 : result", "result",
           "tests/ops/test_distill.py -k minus_infinity"),
    *killed_by(
        "tests/ops/test_distill_arguments.py", "csrc/include/ssd/check_rows.h",
        ("first-offset-unchecked", "if (offsets[0] != 0) return", "if (false) return"),
        ("falling-offsets-unchecked", "if (offsets[b + 1] < offsets[b])", "if (false)"),
        ("last-offset-unchecked", "if (offsets[samples] != count)", "if (false)"),
        ("index-R-accepted", "(low < 0 || high >= neurons)", "(low < 0 || high > neurons)"),
    ),
    Mutant("gaba-threshold-of-K", "csrc/cpu/ops/gaba_linear/gaba_linear.inl", "need_(p.k + 1)", "need_(p.k)",
           "tests/ops/test_gaba_linear.py::test_forward_is_accurate"),
    # Science and training.
    *killed_by(
        f"{METHODS}::test_icarl_s_loss_is_its_formula", "python/ssd_train/methods/icarl.py",
        ("icarl-without-old-targets", "targets[:, self.old] = self.old_targets[batch.rows]", "pass"),
        ("icarl-old-targets-are-logits", "predict(self.teacher, context.x).sigmoid()[:",
         "predict(self.teacher, context.x)[:"),
        ("icarl-unseen-classes-trained", "return Loss(losses[self.seen].sum()", "return Loss(losses.sum()"),
        ("icarl-teacher-keeps-learning", "self.teacher = frozen_copy(context.model)\n\n    def prepare",
         "self.teacher = context.model\n\n    def prepare"),
    ),
    Mutant("herding-of-another-mean", "python/ssd_train/methods/icarl.py", "(total + features) / (k + 1)",
           "(total + features) / (k + 2)", f"{METHODS}::test_herding_follows_the_mean"),
    *killed_by(
        f"{METHODS}::test_a_teacher_counts_nothing", "python/ssd_train/distill.py",
        ("teacher-counts-its-evaluation", "logits.append(output.logits)",
         "logits.append(output.logits)\n        model.count(output.hidden)"),
        ("teacher-is-the-student", "self.model, self.units = frozen_copy(model), [",
         "self.model, self.units = model, ["),
    ),
    *killed_by(
        f"{METHODS}::test_lwf_is_distillation_of_the_old_classes", "python/ssd_train/methods/lwf.py",
        ("lwf-without-its-coefficient", "ce + self.coef * kd", "ce + kd"),
        ("lwf-distils-all-classes", "old_classes=self.old_classes, backend", "old_classes=None, backend"),
        ("lwf-at-another-temperature", "temperature=TEMPERATURE,", "temperature=1.0,"),
    ),
    *killed_by(
        f"{METHODS}::test_si_follows_its_formula", "python/ssd_train/methods/si.py",
        ("si-of-the-wrong-sign", "step, value=-1)", "step, value=1)"),
        ("si-damping-as-a-bound", "(moved.square() + DAMPING)", "moved.square().clamp_min(DAMPING)"),
        ("si-gradient-without-beta", "self.beta * loss.output.logits", "loss.output.logits"),
        ("si-forgets-earlier-tasks", "new + self.quadratic.importance[name] if self.quadratic else new", "new"),
    ),
    Mutant("mas-online-adds", "python/ssd_train/methods/mas.py", "importance, online, 1 - online)",
           "importance, online)", f"{METHODS}::test_online_importance_is_one_term"),
    *killed_by(
        f"{METHODS}::test_engines_agree_on_penalties", "python/ssd_train/methods/penalized.py",
        ("penalty-without-its-coefficient", "self.coef * self.quadratic.value(model)", "self.quadratic.value(model)"),
        ("penalty-of-the-output-at-the-wrong-anchor", 'importance["output_weight"], anchor["output_weight"]',
         'importance["output_weight"], 0 * anchor["output_weight"]'),
    ),
    *killed_by(
        "tests/train/test_importance.py", "python/ssd_train/importance.py",
        ("fisher-of-the-true-labels", "return scaled.argmax(1)", "return y"),
        ("fisher-mean-of-sums", 'reduction="mean" if kind == "mean" else "sum"', 'reduction="sum"'),
        ("fisher-without-the-label", "d[torch.arange(len(y)), _labels(scaled, y, labels, generator)] -= 1", "pass"),
        ("merged-penalty-without-its-spread", "old * share * difference.square()", "0 * share * difference.square()"),
        ("merged-anchor-is-the-latest", "anchor + share * difference, parameter)", "parameter, parameter)"),
    ),
    *killed_by(
        "tests/train/test_agreement.py::test_fp64_training_is_the_oracle", "python/ssd_train/engines.py",
        ("clipping-to-twice-the-norm", "min(1.0, limit /", "min(1.0, 2 * limit /"),
        ("training-counts-nothing", "self.model.count(loss.output.hidden)", "pass"),
        ("output-not-clamped", "alpha=self.config.lr * scale).clamp_(min=0)", "alpha=self.config.lr * scale)"),
    ),
    *killed_by(
        "tests/train/test_agreement.py::test_fp64_training_is_the_oracle", "python/ssd_train/model.py",
        ("switch-at-twice-its-count", "* (2.0 / self.gaba_switch) - 1.0", "* (1.0 / self.gaba_switch) - 1.0"),
    ),
    Mutant("normalised-before-the-clamp", "python/ssd_train/model.py",
           "weight.clamp_(min=0)\n            weight /= weight.norm(dim=1, keepdim=True).clamp_min_(EPS)",
           "weight /= weight.norm(dim=1, keepdim=True).clamp_min_(EPS)\n            weight.clamp_(min=0)",
           f"{METHODS}::test_engines_agree_on_penalties"),
    *killed_by(
        "tests/train/test_metrics.py", "python/ssd_train/metrics/accuracy.py",
        ("bwt-against-the-first-task", "matrix[last][i], matrix[i][i])", "matrix[last][i], matrix[0][i])"),
        ("forgetting-from-the-diagonal", "max(column) - column[-1]", "column[0] - column[-1]"),
        ("forward-transfer-of-the-same-task", "matrix[i - 1][i], initial[i]", "matrix[i][i], initial[i]"),
        ("deviation-with-ddof-0", "(len(values) - 1))", "len(values))"),
        ("task-aware-takes-all-classes", "(own[logits[:, own].argmax(1)] == labels)", "(logits.argmax(1) == labels)"),
        ("accuracy-is-the-mean-of-tasks", "sum(a * n for a, n in known) / total",
         "sum(a for a, n in known) / len(known)"),
    ),
    *killed_by(
        f"{METHODS}::test_units_by_frequency_and_entropy", "python/ssd_train/distill.py",
        ("fewer-units-than-K", "min(max(n, k), len(c))", "min(n, len(c))"),
        ("silent-units-first", "torch.special.entr(1 - p), torch.inf)", "torch.special.entr(1 - p), -torch.inf)"),
    ),
    Mutant("units-by-training-activity", "python/ssd_train/methods/ssd.py",
           "counts = self.activity(context, context.x)", "counts = context.model.counts",
           f"{METHODS}::test_units_are_those_active_on_the_task_s_data"),
    *killed_by(
        f"{METHODS}::test_ssd_loss_and_its_options", "python/ssd_train/methods/ssd.py",
        ("ssd-always-forward", "temperature=options.temperature, kl=options.kl,\n            backend",
         'temperature=options.temperature, kl="forward",\n            backend'),
        ("ssd-alpha-and-lam-exchanged", "alpha=options.alpha, lam=options.lam,",
         "alpha=options.lam, lam=options.alpha,"),
    ),
    Mutant("distillation-without-T-squared", "ssd_kernels/distill/reference.py", "temperature**2 * terms.sum()",
           "temperature * terms.sum()", f"{DISTILL}::test_losses_and_gradients_are_those_of_the_oracle -k reference"),
    # Data and files.
    *killed_by(
        f"{CHECKPOINT} -k damaged", "python/ssd_train/checkpoint.py",
        ("digest-not-compared", 'metadata.get("sha256") != _digest', 'False and metadata.get("sha256") != _digest'),
        ("digest-without-the-document", "hashlib.sha256(document.encode())", "hashlib.sha256()"),
    ),
    Mutant("one-checkpoint-too-many", "python/ssd_train/checkpoint.py", "len(files) + 1 - KEPT", "len(files) - KEPT",
           f"{CHECKPOINT} -k keeps_the_last_two"),
    Mutant("not-flushed-before-the-rename", "python/ssd_train/checkpoint.py", "            os.fsync(handle)\n", "",
           f"{CHECKPOINT} -k full_disk"),
    *killed_by(
        f"{OWN} -k another_run", "python/ssd_train/checkpoint.py",
        ("settings-of-the-run-not-compared", "if name not in theirs or theirs[name] != value:",
         "if name not in theirs:"),
    ),
    Mutant("seed-is-no-part-of-a-run", "python/ssd_train/trainer.py", '"seed": seed, "data\'s', '"data\'s',
           f"{OWN} -k all_seeds"),
    Mutant("data-are-no-part-of-a-run", "python/ssd_train/trainer.py", '"data\'s SHA-256": data.sha256, ', "",
           f"{OWN} -k other_data"),
    Mutant("folder-not-locked", "python/ssd_train/run/folder.py",
           "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", f"{OWN} -k deleted_lock"),
    Mutant("live-temporary-files-removed", "python/ssd_train/checkpoint.py",
           "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", f"{OWN} -k only_what_is_stale"),
    Mutant("bombs-expand", "python/ssd_train/sizes.py", "expanded > max(SMALL, RATIO * packed)", "expanded < 0",
           f"{REFUSED} -k bomb"),
    Mutant("a-class-beyond-the-last", "python/ssd_train/data/dataset.py", "int(y_test.max()) >= classes",
           "int(y_test.max()) > classes", f"{REFUSED} -k stray_label"),
    Mutant("infinity-in-the-data", "python/ssd_train/data/dataset.py", "~torch.isfinite(x[start : start + block])",
           "torch.isnan(x[start : start + block])", f"{REFUSED} -k not_finite"),
    Mutant("pixels-over-256", "python/ssd_train/data/idx.py", "/ 255 if", "/ 256 if",
           "tests/train/test_data.py -k mnist"),
    # Bindings and Triton.
    *killed_by(
        f"{TRAINER} -k outside_changes", "ssd_kernels/sdmlp_trainer/native.py",
        ("changes-from-outside-unseen", "if changed or (x is not None", "if (x is not None"),
    ),
    *killed_by(
        "tests/ops/test_sdmlp_arguments.py -k teacher_that_changes", "ssd_kernels/sdmlp_trainer/native.py",
        ("changed-teacher-not-prepared", " or self._prepared[1] != versions:", ":"),
    ),
    Mutant("contents-not-looked-at", "ssd_kernels/_checks.py",
           'if indices.device.type != "cpu":\n        return\n    module',
           "if True:\n        return\n    module", "tests/ops/test_distill_arguments.py"),
    Mutant("shared-memory-accepted", "ssd_kernels/_checks.py", "if rows * columns <= 1:", "if True:",
           "tests/ops/test_sparse_update.py -k shares_memory"),
    Mutant("strided-weight-not-written-back", "ssd_kernels/sparse_update/cpu.py",
           "weight.index_copy_(0, rows, written[rows])", "pass", "tests/ops/test_sparse_update.py -k layouts"),
    Mutant("clip-above-1", "ssd_kernels/sparse_update/reference.py", "(torch.linalg.vector_norm(grad_rows.double()) "
           "+ 1e-6)).clamp_max(1.0)", "(torch.linalg.vector_norm(grad_rows.double()) + 1e-6))",
           "tests/ops/test_sparse_update.py -k clip"),
    Mutant("triton-counts-zeros", "ssd_kernels/activation_counts/triton_kernel.py", "else values.to(tl.float32) > 0",
           "else values.to(tl.float32) >= 0", "tests/ops/test_activation_counts.py -k triton"),
    Mutant("triton-rows-not-clamped", "ssd_kernels/sparse_update/triton_kernel.py",
           "new = tl.where(new <= 0, 0.0, new)", "new = new + 0.0", "tests/ops/test_sparse_update.py -k triton"),
    Mutant("triton-rows-one-place-on", "ssd_kernels/gaba_linear/triton_kernel.py", "torch.cumsum(counts.flatten(), 0)",
           "torch.cumsum(counts.flatten(), 0) + 1", "tests/ops/test_triton_gaba_linear.py -k rows"),
    # The bf16 preselection.
    *killed_by(
        "cpp:test_preselect", "csrc/cpu/select/scan_bf16.h",
        ("bf16-vector-bound-halved", "const float vectors = x.errors", "const float vectors = 0.5f * x.errors"),
        ("bf16-weight-errors-dropped", " + x.roundeds[r] * w.error;", ";"),
        ("bf16-sums-unbounded", "0x1p-22f * (w.norm + w.error)", "0x1p-40f * (w.norm + w.error)"),
    ),
]
# fmt: on


class Scratch:
    """A copy of the tracked files, in which mutants are put in and taken out again, with one build folder."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.tree, self.build, self.jobs = folder / "tree", folder / "build", jobs
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, names.split("\0")):
            source, copied = ROOT / name, self.tree / name
            # Not where they are the same, and with the time of now: what was built from a mutant must look old.
            if source.is_file() and not (copied.is_file() and copied.read_bytes() == source.read_bytes()):
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copied)
        site = folder / "site"
        site.mkdir(exist_ok=True)
        for name, package in (("ssd_kernels", "ssd_kernels"), ("ssd_train", "python/ssd_train")):
            (site / name).unlink(missing_ok=True)
            (site / name).symlink_to(self.tree / package)
        self.environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
        self.passed: set[str] = set()

    def run(self, command: list[str], log: list[str], **options) -> bool:
        """Whether a command succeeds; its output is added to `log`."""
        done = subprocess.run(
            command, cwd=self.tree, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
        )
        log.append(done.stdout.decode(errors="replace"))
        return done.returncode == 0

    def make(self, target: str) -> None:
        """Builds one CMake target; a build that fails is an error, never a kill."""
        log: list[str] = []
        if not (self.build / "build.ninja").exists():
            import pybind11

            command = [
                "cmake", "-S", str(self.tree), "-B", str(self.build), "-G", "Ninja", "-DSSD_TESTS=ON", "-DSSD_CUDA=0",
                f"-DSSD_MODULE_DIR={self.tree / 'ssd_kernels'}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DPython_EXECUTABLE={sys.executable}",
            ]  # fmt: skip
            if not self.run(command, log):
                raise SystemExit(f"{log[-1]}\nCMake failed")
        if not self.run(["cmake", "--build", str(self.build), "-j", str(self.jobs), "--target", target], log):
            raise SystemExit(f"{log[-1][-4000:]}\nbuilding {target} failed")

    def passes(self, test: str, native: bool) -> bool:
        """Whether a test passes on the tree as it is. native: its C++ differs from what is installed."""
        log: list[str] = []
        if test.startswith("cpp:"):
            self.make(test[4:])
            return self.run([str(self.build / "tests" / "cpp" / test[4:])], log, timeout=600)
        if native or not self._copy_modules():
            self.make("_cpu")
            built = next(self.build.glob("_cpu*.so"))
            shutil.copy2(built, self.tree / "ssd_kernels" / built.name)
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *shlex.split(test)]
        passed = self.run(command, log, timeout=1200)
        if not passed and not any(mark in log[-1] for mark in (" failed", " error")):
            raise SystemExit(f"{log[-1][-4000:]}\npytest {test} ran no test")
        return passed

    def _copy_modules(self) -> bool:
        """Brings the installed native modules into the tree."""
        found = subprocess.run(
            [sys.executable, "-P", "-c", "import ssd_kernels; print(ssd_kernels.__path__[0])"],
            capture_output=True, text=True, cwd=self.tree.parent,
        )  # fmt: skip
        modules = list(Path(found.stdout.strip()).glob("_cpu*.so")) if found.returncode == 0 else []
        for module in modules:
            shutil.copy2(module, self.tree / "ssd_kernels" / module.name)
        return bool(modules)

    def survives(self, mutant: Mutant) -> str:
        """Why the mutant counts as a failure; empty when its test kills it."""
        path = self.tree / mutant.file
        text = path.read_text() if path.exists() else ""
        if text.count(mutant.old) != 1:
            return f"the old text occurs {text.count(mutant.old)} times in {mutant.file}"
        native = mutant.file.startswith("csrc/")
        if mutant.kill not in self.passed:
            if not self.passes(mutant.kill, native):
                return f"{mutant.kill} fails without the mutant"
            self.passed.add(mutant.kill)
        path.write_text(text.replace(mutant.old, mutant.new))
        try:
            return f"{mutant.kill} passes on it" if self.passes(mutant.kill, native) else ""
        finally:
            path.write_text(text)


def chosen(arguments: argparse.Namespace) -> list[Mutant]:
    """The mutants that the arguments name, by name or number from 1; all without arguments."""
    picked = MUTANTS
    if arguments.only:
        by_name = {mutant.name: mutant for mutant in MUTANTS} | {str(n): m for n, m in enumerate(MUTANTS, 1)}
        if unknown := [name for name in arguments.only if name not in by_name]:
            raise SystemExit(f"--only: no mutant {unknown[0]!r} (see --list)")
        picked = [by_name[name] for name in arguments.only]
    if arguments.sample is not None:
        picked = random.Random(arguments.sample).sample(picked, min(arguments.count, len(picked)))
    return picked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants, by name or number")
    parser.add_argument("--sample", metavar="TEXT", help="some mutants, chosen by this text (a commit's hash)")
    parser.add_argument("--count", type=int, default=6, help="how many --sample chooses")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="of the C++ build")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--folder", type=Path, help="scratch folder that is kept, with what is built there")
    arguments = parser.parse_args()
    if len({mutant.name for mutant in MUTANTS}) < len(MUTANTS):
        raise SystemExit("two mutants have one name")
    if arguments.list:
        for number, mutant in enumerate(MUTANTS, 1):
            print(f"{number:3} {mutant.name:45} {mutant.file}  <- {mutant.kill}")
        return 0
    survived = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Scratch(folder, arguments.jobs)
        for mutant in chosen(arguments):
            begin = time.monotonic()
            reason = scratch.survives(mutant)
            survived += bool(reason)
            verdict = f"SURVIVES: {reason}" if reason else f"dies by {mutant.kill}"
            print(f"{mutant.name}: {verdict} ({time.monotonic() - begin:.0f} s)", flush=True)
    print(f"{survived} of {len(chosen(arguments))} survive")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())

"""Prediction of one trained nnU-Net model by nnU-Net and by medseg: seconds, CPU seconds, memory, and how many labels are equal.

    python benchmarks/prediction_speed.py --nnunet-python NNUNET_VENV/bin/python MODEL_FOLDER IMAGES --cases 60

MODEL_FOLDER is a trained model such as `nnUNetTrainer__nnUNetPlans__3d_fullres` (also one that `medseg export` wrote), IMAGES a folder of
files named CASE_0000.nii.gz. Three programs run in turn, in processes of their own, start included, on the CPU, with the same threads and the
same mirroring: nnU-Net, medseg with the imported model, and medseg with the model imported by `--half` (16 bits where the device is faster with them).
CPU seconds are of all processes; on a machine that others use they say more than seconds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import psutil
from hardware import write
from nnunet_prediction import Cost, compared, measured

from medseg.interop.nnunet.folder import import_model
from medseg.plans import Plan
from medseg.workspace import RunFolder


def floor(run: Path, threads: int) -> dict[str, float]:
    """Seconds that the convolutions of one window take at the rate of a large matrix product, in 32 and 16 bits."""
    script = (
        "import sys, time, torch; from pathlib import Path; from torch.utils.flop_counter import FlopCounterMode\n"
        "from medseg.inference.predictor import Predictor\n"
        "p = Predictor.load(Path(sys.argv[1]), device='cpu'); n = p.ensemble.networks[0]; torch.set_num_threads(int(sys.argv[2]))\n"
        "x = torch.zeros(1, len(p.plan.data.channels), *p.plan.window)\n"
        "with torch.no_grad(), FlopCounterMode(display=False) as f: n(x)\n"
        "print(f.get_total_flops())\n"
        "for t in (torch.float32, torch.bfloat16):\n"
        "    a = torch.randn(4096, 4096).to(t); a @ a; s = time.perf_counter(); [a @ a for _ in range(3)]\n"
        "    print(3 * 2 * 4096 ** 3 / (time.perf_counter() - s))\n"
    )
    said = subprocess.run([sys.executable, "-c", script, str(run), str(threads)], check=True, capture_output=True, text=True).stdout
    operations, full, half = (float(line) for line in said.split()[-3:])
    return {"gflop_per_window": operations / 1e9, "gflops_32_bits": full / 1e9, "gflops_16_bits": half / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--nnunet-python", type=Path, required=True)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        images = work / "images"
        images.mkdir()
        for file in sorted(arguments.images.glob("*_0000.nii.gz"))[: arguments.cases]:
            (images / file.name).write_bytes(file.read_bytes())
        fold = None if arguments.fold == "all" else int(arguments.fold)
        medseg = [sys.executable, str(Path(__file__).parents[1] / "cli.py"), "predict"]
        program = str(arguments.nnunet_python.with_name("nnUNetv2_predict_from_modelfolder"))
        commands = {"nnunet": [program, "-i", str(images), "-m", str(arguments.model), "-f", arguments.fold]}
        commands["nnunet"] += ["-device", "cpu", "-npp", "1", "-nps", "1", "--disable_progress_bar"]
        for name, half in (("medseg", False), ("medseg_half", True)):
            import_model(arguments.model, work / f"run_{name}", folds=(fold,), half=half)
            commands[name] = [*medseg, str(work / f"run_{name}"), str(images), "--device", "cpu"]
        costs: dict[str, list[Cost]] = {name: [] for name in commands}
        for repeat in range(arguments.repeats):
            for name, command in commands.items():
                costs[name].append(measured([*command, "-o", str(work / f"out_{name}_{repeat}")], work / f"{name}.log", arguments.threads))
                print(name, costs[name][-1], flush=True)
        plan = Plan.load(RunFolder(work / "run_medseg").plan_file)
        rows: dict[str, object] = {"cases": len(list(images.iterdir())), "window": plan.window, "mirror": plan.inference.mirror}
        rows["rates"] = floor(work / "run_medseg", arguments.threads)
        medians = {
            name: {key: statistics.median(asdict(one)[key] for one in found) for key in asdict(found[0])} for name, found in costs.items()
        }
        for name, found in medians.items():
            ratio = {f"nnunet_over_{key}": round(medians["nnunet"][key] / value, 2) for key, value in found.items()}
            rows[name] = found if name == "nnunet" else found | ratio
            if name != "nnunet":
                rows[f"parity_{name}"] = asdict(compared(work / "out_nnunet_0", work / f"out_{name}_0", plan))
    note = f"whole processes with {arguments.threads} threads, start included; medians of {arguments.repeats}; PSS of all processes"
    print(write("prediction_speed", rows, note))


if __name__ == "__main__":
    main()

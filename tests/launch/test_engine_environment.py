"""What an engine's environment holds, and what never gets there."""

import os

from optimizer.launch.environment import engine_environment, with_package


def test_nothing_passes_but_what_is_allowed():
    base = {
        "AWS_SECRET_ACCESS_KEY": "x",
        "CUDA_HOME": "/cuda",
        "FLEETSLICE_RUN_DIR": "x",
        "HF_TOKEN": "models",
        "HOME": "/home/me",
        "LC_ALL": "C",
        "LD_PRELOAD": "x",
        "PYTHONSTARTUP": "x",
        "RAY_AUTH_TOKEN_PATH": "x",
        "https_proxy": "http://proxy",
    }
    found = engine_environment(base, {"CUDA_VISIBLE_DEVICES": "3"})
    kept = {"CUDA_HOME", "CUDA_VISIBLE_DEVICES", "HF_TOKEN", "HOME", "LC_ALL", "https_proxy"}
    assert set(found) == kept | {"PATH", "PYTHONUNBUFFERED"}


def test_what_the_plan_says_wins():
    found = engine_environment({"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"})
    assert found["CUDA_VISIBLE_DEVICES"] == "3"


def test_engines_beside_the_interpreter_are_found_first():
    found = engine_environment({"PATH": "/bin"}, {}, interpreter="/venv/bin/python")
    assert found["PATH"] == f"/venv/bin{os.pathsep}/bin"


def test_the_package_is_put_on_the_path_once():
    once = with_package({"PYTHONPATH": "/mine"})
    assert with_package(once) == once
    assert once["PYTHONPATH"].endswith(f"{os.pathsep}/mine")

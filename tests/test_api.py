"""The public names, and what importing them costs."""

import importlib.metadata
import inspect
import pkgutil

import pytest

import resrepro


def test_the_public_names_are_these_and_all_are_documented():
    assert resrepro.__all__ == ["build_net", "compare", "evaluate", "load_net", "load_runs", "plot", "train"]
    for name in resrepro.__all__:
        thing = getattr(resrepro, name)
        assert inspect.isfunction(thing), name
        assert len(inspect.getdoc(thing)) > 60
        assert name in dir(resrepro)


def test_importing_every_submodule_leaves_the_public_names_alone():
    for module in pkgutil.walk_packages(resrepro.__path__, "resrepro."):
        module.name.endswith("__main__") or importlib.import_module(module.name)
    assert all(inspect.isfunction(getattr(resrepro, name)) for name in resrepro.__all__)


def test_the_version_is_that_of_the_package():
    assert resrepro.__version__ == importlib.metadata.version("resrepro")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        resrepro.frobnicate  # noqa: B018

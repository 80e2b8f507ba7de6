"""What pyproject.toml cannot say: the cffi module and the abi3 tag of the wheel."""

import sys
import sysconfig

from setuptools import setup

# Free-threaded and debug interpreters have no stable ABI in common with the others; cffi leaves it out there too.
has_abi3 = not sysconfig.get_config_var("Py_GIL_DISABLED") and not hasattr(sys, "gettotalrefcount")

setup(
    cffi_modules=["csrc/ffi_build.py:ffi"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if has_abi3 else {},
)

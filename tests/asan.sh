#!/bin/sh
# Malformed arguments to native code under AddressSanitizer: the fuzz cases of tests/fuzz/operations.py with a module
# that is built for it. A read or write outside a tensor ends it with a report. From the root of the checkout, in the
# environment of the tests. SSD_SIMD selects a level; what is built stays in build/asan:
#
#   sh tests/asan.sh                       1000 cases of each target
#   sh tests/asan.sh --cases 200 --only engine
set -eu
build=build/asan
mkdir -p $build/site/ssd_kernels
cp -r ssd_kernels/. $build/site/ssd_kernels/
cmake -S . -B $build -G Ninja -DSSD_CUDA=0 -DSSD_SANITIZE=address -DSSD_MODULE_DIR="$PWD/$build/site/ssd_kernels" \
  -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" -DPython_EXECUTABLE="$(command -v python)" >$build.log
cmake --build $build --target install >>$build.log
[ $# -gt 0 ] || set -- --cases 1000
# Python is not sanitized itself, so the runtime is preloaded; what it keeps until its end is no leak.
LD_PRELOAD="$(${CXX:-c++} -print-file-name=libasan.so) $(${CXX:-c++} -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH="$PWD/$build/site" OMP_NUM_THREADS=1 \
  python -P tests/fuzz/operations.py "$@"

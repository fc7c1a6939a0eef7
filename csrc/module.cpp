// The Python module `_C`: how this shared object was built. It knows no torch header and names no op: the ops register
// themselves with torch when the object is loaded. Nor does it know the sources' fingerprint (the manifest has it), or every
// edit elsewhere would compile it again.
#include <pybind11/pybind11.h>

#include <string>

#ifndef MIXSYN_FAST_TORCH_TARGET
#define MIXSYN_FAST_TORCH_TARGET ""
#endif
#ifndef MIXSYN_FAST_CUDA
#define MIXSYN_FAST_CUDA ""
#endif
#ifndef MIXSYN_FAST_ARCHS
#define MIXSYN_FAST_ARCHS ""
#endif

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_info() {
  const std::string cuda = MIXSYN_FAST_CUDA;
  py::dict info;
  info["compiler"] = compiler();
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["torch_target_version"] = MIXSYN_FAST_TORCH_TARGET;
  info["cuda"] = cuda.empty() ? py::object(py::none()) : py::object(py::str(cuda));
  info["cuda_archs"] = MIXSYN_FAST_ARCHS;
#ifdef MIXSYN_FAST_SANITIZE
  info["sanitize"] = true;
#else
  info["sanitize"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Build information of the mixsyn_fast extension.";
  module.def("build_info", &build_info,
             "Return a dict: compiler, cxx_standard, torch_target_version, cuda, cuda_archs, sanitize.");
}

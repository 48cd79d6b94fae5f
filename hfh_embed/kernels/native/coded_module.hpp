// What module.cpp adds to the extension from coded_module.cpp.
#pragma once

#include <nanobind/nanobind.h>

void bind_coded(nanobind::module_& m);

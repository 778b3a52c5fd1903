// Every instruction set of this machine in turn, best first, which stays.
#pragma once

#include <string>

#include "core/isa.h"

namespace pyattn::testing {

template <class Body>
void for_each_isa(Body body) {
  for (const std::string& name : available_isas()) {
    set_isa(name);
    body(name);
  }
  set_isa(available_isas().front());
}

}  // namespace pyattn::testing

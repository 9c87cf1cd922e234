// The model of an engine: the facts of ModelSpec that a caller needs. spec.py explains every field.
#ifndef CGD_SPEC_HPP
#define CGD_SPEC_HPP

#include "resize.hpp"

#include <nlohmann/json_fwd.hpp>

#include <cstddef>
#include <cstdint>
#include <string>

namespace cgd {

struct Spec {
    std::size_t dim;
    std::uint32_t height, width;
    ResizeRule rule;
    std::string space_id;

    std::size_t image_bytes() const {
        return 3 * std::size_t(height) * width;
    }
};

// The inverse of ModelSpec.to_dict. Throws std::invalid_argument, Failure or an exception of nlohmann::json for a
// missing or unknown field, or a wrong value.
Spec read_spec(const nlohmann::json &fields);

}  // namespace cgd

#endif

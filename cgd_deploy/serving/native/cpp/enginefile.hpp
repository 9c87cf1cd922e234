// The .cgd file: a stored zip of manifest.json, a payload for one backend, and golden pictures with descriptors.
// Everything is checked before the backend sees a byte. enginefile.py explains every field.
#ifndef CGD_ENGINEFILE_HPP
#define CGD_ENGINEFILE_HPP

#include "spec.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace cgd {

// How a CPU runs an engine: `streams` parts of each `batch` run at the same time and share `threads`.
struct Setting {
    std::size_t threads, streams, batch;
};

struct Manifest {
    Spec spec;
    std::string backend, precision;
    std::string float_precision;  // of all that an INT8 engine leaves in float; empty for other engines
    std::size_t max_batch;
    std::string builders_instruction_sets;  // of the CPU that built the engine, with spaces between them

    bool needs_bf16() const {
        return precision == "bf16" || float_precision == "bf16";
    }
};

struct EngineFile {
    std::string path;
    Manifest manifest;
    std::string payload;                         // the model, in the form that the backend loads
    std::vector<std::uint8_t> golden_images;     // [n, height, width, 3]
    std::vector<float> golden_descriptors;       // [n, dim]
    std::optional<Setting> latency, throughput;  // the fastest on a machine like this, if one was measured
    std::string untuned;  // why the tuning beside the engine cannot be used; empty if it can, or if there is none

    std::size_t golden_count() const {
        return golden_descriptors.size() / manifest.spec.dim;
    }
};

// Read an engine file and verify every checksum, the manifest's first. Throws Failure(CGD_BAD_ENGINE) if the file is
// missing, truncated, edited, of another schema, or larger than the limits.
EngineFile read_engine(const std::string &path);

}  // namespace cgd

#endif

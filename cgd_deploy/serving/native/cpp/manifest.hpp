// manifest.json and the tuning beside an engine: what their tables must hold.
#ifndef CGD_MANIFEST_HPP
#define CGD_MANIFEST_HPP

#include "enginefile.hpp"

#include <nlohmann/json_fwd.hpp>

#include <exception>
#include <map>
#include <string>
#include <string_view>

namespace cgd {

constexpr int SCHEMA = 1;  // of the manifest and of the tuning

// The table in a JSON text. Throws std::invalid_argument for other text.
nlohmann::json parse_table(std::string_view text);

// What an exception says, without the name that nlohmann::json gives it.
std::string reason_of(const std::exception &error);

struct ReadManifest {
    Manifest manifest;
    std::string payload;                      // the name of its member
    std::map<std::string, std::string> sums;  // SHA-256 of every other member
};

// Throws Failure, std::invalid_argument or an exception of nlohmann::json for missing, unknown or wrong fields.
ReadManifest read_manifest(const nlohmann::json &fields);

// Put the tunings of a machine like this one into `file`, from the file beside the engine, then from the manifest.
void read_tunings(EngineFile &file, const std::string &manifest_sha256, const nlohmann::json &manifest);

}  // namespace cgd

#endif

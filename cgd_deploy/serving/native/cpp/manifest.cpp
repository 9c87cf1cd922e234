#include "manifest.hpp"

#include "failure.hpp"
#include "file.hpp"
#include "limits.hpp"
#include "machine.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <set>
#include <stdexcept>

namespace cgd {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t LARGEST_COUNT = 1 << 16;
constexpr std::array NEEDED{"spec", "backend", "precision", "payload", "profile", "builder"};
const std::set<std::string> OPTIONAL{"schema",          "gpu",    "source", "parity", "proof", "retrieval",
                                     "float_precision", "tuning", "sha256"};
const std::set<std::string> PRECISIONS{"fp32", "tf32", "fp16", "bf16", "int8"};
constexpr const char *AGAIN = "measure again with `cgd-deploy inspect --autotune`, or remove the file";

[[noreturn]] void refuse(const std::string &what) {
    throw std::invalid_argument(what);
}

std::size_t count(const Json &table, const char *name) {
    const Json &value = table.at(name);
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() < 1 || value.get<std::uint64_t>() > LARGEST_COUNT)
        refuse(std::string(name) + " is " + value.dump().substr(0, 60));
    return value.get<std::size_t>();
}

void check_table(const Json &fields, const char *name, bool may_be_null) {
    const auto found = fields.find(name);
    if (found != fields.end() && !found->is_object() && !(may_be_null && found->is_null()))
        refuse(std::string(name) + " is not a table");
}

void check_text(const Json &value, bool may_be_null = false) {
    if (!value.is_string() && !(may_be_null && value.is_null())) refuse("a field is not text");
}

void check_precision(const Json &value) {
    if (!value.is_string() || !PRECISIONS.count(value)) refuse("a precision is " + value.dump().substr(0, 60));
}

void check_fields(const Json &fields) {
    for (const char *name : NEEDED)
        if (!fields.contains(name)) refuse(std::string("it lacks ") + name);
    for (const auto &[name, value] : fields.items())
        if (!OPTIONAL.count(name) && std::find(NEEDED.begin(), NEEDED.end(), name) == NEEDED.end())
            refuse("it has an unknown field " + name.substr(0, 60));
    for (const char *name : {"profile", "builder", "source", "sha256"}) check_table(fields, name, false);
    for (const char *name : {"gpu", "parity", "proof", "retrieval"}) check_table(fields, name, true);
    for (const char *name : {"backend", "payload", "precision"}) check_text(fields[name]);
    if (fields.contains("source"))
        for (const auto &[name, value] : fields["source"].items()) check_text(value, true);
    if (fields.contains("retrieval") && fields["retrieval"].is_object())
        check_text(fields["retrieval"].value("statement", Json()), true);
    for (const char *name : {"min", "opt", "max"}) count(fields["profile"], name);
}

Setting read_setting(const Json &table) {
    if (table.size() != 3) refuse("a setting has unknown fields");
    return {count(table, "threads"), count(table, "streams"), count(table, "batch")};
}

void check_tuning(const Json &tuning) {
    for (const char *purpose : {"latency", "throughput"}) read_setting(tuning.at(purpose));
    static_cast<void>(tuning.at("machine"));
}

// The first tuning of this machine is used.
void use(EngineFile &file, const Json &tuning, const Json &here) {
    if (file.latency || tuning.at("machine") != here) return;
    file.latency = read_setting(tuning.at("latency"));
    file.throughput = read_setting(tuning.at("throughput"));
}

std::vector<Json> tunings_beside(const std::string &engine, const std::string &manifest_sha256) {
    const std::string path = engine + ".tuning.json";
    if (!is_file(path)) return {};
    const Json told = parse_table(File(path, "manifest_bytes", CGD_BAD_ENGINE).read());
    if (told.at("schema") != SCHEMA) refuse("schema " + told["schema"].dump().substr(0, 60));
    for (const Json &tuning : told.at("machines")) check_tuning(tuning);
    if (told.at("manifest_sha256") != manifest_sha256)
        throw Failure(CGD_BAD_ENGINE,
                      path + " was measured for another engine than " + engine + " is now; " + AGAIN + ".");
    return told["machines"];
}

}  // namespace

Json parse_table(std::string_view text) {
    try {
        Json table = Json::parse(text);
        if (!table.is_object()) refuse("its text is not a table");
        return table;
    } catch (const Json::exception &) {  // its sentence repeats the text
        refuse("its text is not JSON");
    }
}

std::string reason_of(const std::exception &error) {
    const std::string text = error.what();
    const bool from_json = dynamic_cast<const Json::exception *>(&error) != nullptr;
    return from_json ? text.substr(text.find("] ") + 2) : text;
}

ReadManifest read_manifest(const Json &fields) {
    check_fields(fields);
    check_precision(fields["precision"]);
    const Json floats = fields.value("float_precision", Json());
    if (!floats.is_null()) check_precision(floats);
    if (const auto tuning = fields.find("tuning"); tuning != fields.end() && !tuning->is_null()) check_tuning(*tuning);
    const auto built_on = fields["builder"].find("instruction_sets");
    ReadManifest read{
        {read_spec(fields["spec"]), fields["backend"], fields["precision"],
         floats.is_null() ? "" : floats.get<std::string>(), count(fields["profile"], "max"),
         built_on != fields["builder"].end() && built_on->is_string() ? built_on->get<std::string>() : ""},
        fields["payload"],
        {}};
    if (fields.contains("sha256"))
        for (const auto &[name, sum] : fields["sha256"].items()) read.sums[name] = sum.get<std::string>();
    return read;
}

void read_tunings(EngineFile &file, const std::string &manifest_sha256, const Json &manifest) {
    std::vector<Json> tunings;
    try {
        tunings = tunings_beside(file.path, manifest_sha256);
    } catch (const Failure &failure) {
        file.untuned = failure.what();
    } catch (const std::exception &error) {
        file.untuned =
            file.path + ".tuning.json is not a tuning of an engine (" + reason_of(error) + "); " + AGAIN + ".";
    }
    if (const auto own = manifest.find("tuning"); own != manifest.end() && own->is_object()) tunings.push_back(*own);
    if (tunings.empty()) return;
    const Json here{{"cpu", cpu_name()}, {"instruction_sets", instruction_sets()}, {"threads", available_threads()}};
    for (const Json &tuning : tunings) use(file, tuning, here);
}

}  // namespace cgd

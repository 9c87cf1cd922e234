#include "enginefile.hpp"

#include "failure.hpp"
#include "file.hpp"
#include "limits.hpp"
#include "manifest.hpp"
#include "npy.hpp"
#include "sha256.hpp"
#include "zip.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <stdexcept>
#include <tuple>

namespace cgd {
namespace {

struct Content {
    std::string bytes, sum;
};

using Members = std::map<std::string, Content>;  // by name

constexpr const char *MANIFEST = "manifest.json";
constexpr const char *GOLDEN_IMAGES = "golden/images.npy", *GOLDEN_DESCRIPTORS = "golden/descriptors.npy";
constexpr const char *REBUILD = "build it again with `cgd-deploy build-engine`";

[[noreturn]] void refuse(const std::string &sentence) {
    throw Failure(CGD_BAD_ENGINE, sentence);
}

// Names of members, without a root, ".." or a drive.
bool is_plain(const std::string &name) {
    bool begins = true;
    for (const unsigned char c : name) {
        const bool word = std::isalnum(c) || c == '_' || c == '-' || c >= 0x80;
        if (!word && (begins || (c != '.' && c != '/'))) return false;
        begins = c == '/';
    }
    return !begins;
}

void check_names(const Zip &zip, const std::string &path) {
    for (const Member &member : zip.members)
        if (!is_plain(member.name))
            refuse(path + " has a member named '" + member.name.substr(0, 60) + "', which is not a plain name; " +
                   REBUILD + ".");
}

std::string manifest_text(const File &file, const Zip &zip, const std::string &path) {
    const auto found = std::find_if(zip.members.begin(), zip.members.end(),
                                    [](const Member &member) { return member.name == MANIFEST; });
    if (found == zip.members.end()) throw std::invalid_argument("it has no manifest.json");
    check_size("the manifest of " + path, found->size, "manifest_bytes", CGD_BAD_ENGINE);
    std::string text = file.read(found->start, found->size);
    if (sha256(text.data(), text.size()) != zip.comment)
        refuse("the manifest of " + path + " was edited after the engine was built; " + REBUILD + ".");
    return text;
}

std::pair<ReadManifest, nlohmann::json> parsed(const std::string &text, const std::string &path) {
    nlohmann::json table = parse_table(text);
    const nlohmann::json schema = table.value("schema", nlohmann::json());
    if (schema != SCHEMA)
        refuse(path + " has schema " + schema.dump().substr(0, 60) + ", this release reads " + std::to_string(SCHEMA) +
               "; upgrade cgd-deploy or " + REBUILD + ".");
    try {
        ReadManifest manifest = read_manifest(table);
        return {std::move(manifest), std::move(table)};
    } catch (const std::exception &error) {
        refuse(path + " has a damaged manifest (" + reason_of(error) + "); " + REBUILD + ".");
    }
}

Members checked_members(const File &file, const Zip &zip, const ReadManifest &manifest, const std::string &path) {
    Members members;
    for (const Member &member : zip.members)
        if (member.name != MANIFEST)
            std::tie(members[member.name].bytes, members[member.name].sum) =
                file.read_and_sum(member.start, member.size);
    std::set<std::string> names{manifest.payload, GOLDEN_IMAGES, GOLDEN_DESCRIPTORS};
    for (const auto &[name, sum] : manifest.sums) names.insert(name);
    for (const auto &[name, content] : members) names.insert(name);
    for (const std::string &name : names) {
        const auto content = members.find(name);
        const auto sum = manifest.sums.find(name);
        if (content == members.end() || sum == manifest.sums.end() || content->second.sum != sum->second)
            refuse("'" + name.substr(0, 60) + "' in " + path +
                   " does not have the checksum of its manifest; copy it again or " + REBUILD + ".");
    }
    return members;
}

// Copy the golden arrays if they have the sizes in the spec.
void take_golden(EngineFile &file, const Members &members) {
    const Spec &spec = file.manifest.spec;
    try {
        const Array images = read_npy(members.at(GOLDEN_IMAGES).bytes),
                    rows = read_npy(members.at(GOLDEN_DESCRIPTORS).bytes);
        const std::size_t count = images.rows();
        if (images.type != "|u1" || images.shape != std::vector<std::size_t>{count, spec.height, spec.width, 3})
            throw std::invalid_argument("the pictures have another type or size");
        if (!count || rows.type != "<f4" || rows.shape != std::vector<std::size_t>{count, spec.dim})
            throw std::invalid_argument("the descriptors have another type or number");
        file.golden_images.assign(images.data, images.data + images.values());
        file.golden_descriptors.resize(rows.values());
        std::memcpy(file.golden_descriptors.data(), rows.data, rows.values() * sizeof(float));
    } catch (const std::invalid_argument &error) {
        refuse(file.path + " has golden pictures and descriptors that do not fit its spec (" + reason_of(error) +
               "); " + REBUILD + ".");
    }
}

}  // namespace

EngineFile read_engine(const std::string &path) {
    if (!is_file(path)) refuse("there is no engine at " + path + "; make it with `cgd-deploy build-engine`.");
    const File file(path, "engine_bytes", CGD_BAD_ENGINE);
    try {
        const Zip zip = read_zip(file);
        check_names(zip, path);
        const std::string text = manifest_text(file, zip, path);
        auto [read, table] = parsed(text, path);
        Members members = checked_members(file, zip, read, path);
        EngineFile engine{path, read.manifest, std::move(members[read.payload].bytes), {}, {}, {}, {}, {}};
        take_golden(engine, members);
        read_tunings(engine, zip.comment, table);
        return engine;
    } catch (const Failure &) {
        throw;
    } catch (const std::exception &error) {
        refuse(path + " is not a whole .cgd file (" + reason_of(error) + "); copy it again or " + REBUILD + ".");
    }
}

}  // namespace cgd

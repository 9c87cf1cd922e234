// A small HTTP service: it answers a JPEG or PNG file with its descriptor. Pictures of several requests are computed
// together; a full queue answers 503, and a picture that waits for more than two seconds 504.
//
//     cmake -B build -DCMAKE_PREFIX_PATH=PREFIX && cmake --build build     needs cpp-httplib
//     build/service model-int8.cgd 8080
//     curl --data-binary @a.jpg localhost:8080/describe
#include <cgd.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <httplib.h>
#include <sstream>
#include <thread>

namespace {

constexpr std::chrono::milliseconds TIMEOUT{2000};
constexpr std::size_t LONGEST_FILE = 64 << 20;
constexpr std::size_t CLIENTS = 64;

std::string quoted(const std::string &text) {
    std::string json = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') json += '\\';
        json += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
    }
    return json + '"';
}

int http_status(cgd_status status) {
    switch (status) {
        case CGD_BAD_INPUT:
            return 400;
        case CGD_OVERLOADED:
        case CGD_SHUTTING_DOWN:
            return 503;
        case CGD_TIMED_OUT:
            return 504;
        default:
            return 500;
    }
}

void answer(httplib::Response &response, const std::string &json) {
    response.set_content(json, "application/json");
}

void describe(const cgd::Engine &engine, const httplib::Request &request, httplib::Response &response) try {
    std::vector<float> descriptor(engine.dim());
    engine.submit_encoded(request.body.data(), request.body.size(), descriptor.data(), TIMEOUT).wait();
    std::ostringstream json;
    json.precision(9);  // a float keeps its value
    json << "{\"space_id\": " << quoted(engine.space_id()) << ", \"descriptor\": [";
    for (std::size_t i = 0; i < descriptor.size(); i++) json << (i ? ", " : "") << descriptor[i];
    json << "]}";
    answer(response, json.str());
} catch (const cgd::Error &error) {
    response.status = http_status(error.status());
    if (response.status == 503) response.set_header("Retry-After", "1");
    answer(response, "{\"error\": " + quoted(error.what()) + "}");
}

void tell_stats(const cgd::Engine &engine, httplib::Response &response) {
    const cgd_stats stats = engine.stats();
    std::ostringstream json;
    json << "{\"waiting\": " << stats.waiting << ", \"described\": " << stats.described << ", \"shed\": " << stats.shed
         << ", \"expired\": " << stats.expired << ", \"bad_input\": " << stats.bad_input
         << ", \"compute_seconds\": " << stats.compute_seconds.total << "}";
    answer(response, json.str());
}

}  // namespace

int main(int argc, char **argv) try {
    if (argc != 3) return std::fprintf(stderr, "usage: %s ENGINE PORT\n", argv[0]), 2;
    sigset_t stops;
    sigemptyset(&stops);
    sigaddset(&stops, SIGINT);
    sigaddset(&stops, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &stops, nullptr);  // also in the threads that start below; one thread waits for them

    const cgd::Engine engine(argv[1]);
    httplib::Server server;
    server.new_task_queue = [] { return new httplib::ThreadPool(CLIENTS); };
    server.set_payload_max_length(LONGEST_FILE);
    server.Post("/describe", [&](const httplib::Request &request, httplib::Response &response) {
        describe(engine, request, response);
    });
    server.Get("/stats", [&](const httplib::Request &, httplib::Response &response) { tell_stats(engine, response); });

    const int asked = std::atoi(argv[2]);
    const int port = asked ? asked : server.bind_to_any_port("127.0.0.1");
    if (port <= 0 || (asked && !server.bind_to_port("127.0.0.1", asked)))
        return std::fprintf(stderr, "port %s cannot be used; give a free one, or 0 for any.\n", argv[2]), 1;
    std::thread stopper([&] {
        int signal = 0;
        sigwait(&stops, &signal);
        server.stop();
    });
    std::printf("http://127.0.0.1:%d/describe\n", port);
    std::fflush(stdout);
    const bool served = server.listen_after_bind();
    pthread_kill(stopper.native_handle(), SIGTERM);  // if it still waits
    stopper.join();
    return served ? 0 : 1;
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}

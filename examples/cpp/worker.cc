#include "worker.h"

#include <fcntl.h>
#include <pwd.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>
#include <utility>

#include "crc32c.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "arrays are little-endian on the wire");

namespace {

constexpr std::size_t kChunkBytes = 1 << 20;

std::string RandomId() {
  static std::random_device random;
  static const char digits[] = "0123456789abcdef";
  std::string id;
  while (id.size() < 32) id += digits[random() % 16];
  return id;
}

std::size_t SizeOf(const ps::TensorSpec& tensor) {
  std::size_t size = 1;
  for (auto extent : tensor.shape()) size *= extent;
  return size;
}

ps::ErrorDetail DetailOf(const grpc::ClientContext& context) {
  ps::ErrorDetail detail;
  const auto& trailing = context.GetServerTrailingMetadata();
  const auto found = trailing.find("numba-adam-error-bin");
  if (found != trailing.end()) detail.ParseFromArray(found->second.data(), static_cast<int>(found->second.size()));
  return detail;
}

// Returns whether the same call, sent again with the same content, may succeed.
bool IsTransient(grpc::StatusCode code, ps::Reason reason) {
  switch (reason) {
    case ps::REASON_CORRUPT_TRANSFER:
    case ps::REASON_BUDGET:
    case ps::REASON_IN_PROGRESS:
    case ps::REASON_STOPPING:
    case ps::REASON_RATE_LIMITED:
      return true;
    case ps::REASON_UNSPECIFIED:
      return code == grpc::UNAVAILABLE || code == grpc::CANCELLED || code == grpc::INTERNAL || code == grpc::UNKNOWN ||
             code == grpc::DATA_LOSS || code == grpc::RESOURCE_EXHAUSTED;
    default:
      return false;
  }
}

// Returns a variable of the environment; empty if it is not set.
std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// Returns the content of a file that a variable of the environment names; empty without the variable.
std::string FileOf(const char* name) {
  const std::string path = Variable(name);
  if (path.empty()) return "";
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string(name) + ": cannot read " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// TLS if the environment names the server's CA, with the same variables as our Python client; else a plain connection.
std::shared_ptr<grpc::ChannelCredentials> Credentials() {
  const std::string ca = FileOf("NUMBA_ADAM_SERVER_CA");
  if (ca.empty()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = ca;
  options.pem_cert_chain = FileOf("NUMBA_ADAM_WORKER_CERTIFICATE");
  options.pem_private_key = FileOf("NUMBA_ADAM_WORKER_KEY");
  return grpc::SslCredentials(options);
}

// Returns the token that a server on loopback wrote for its own user; empty: none, or other users may read the file.
std::string LoopbackToken(const std::string& port) {
  std::string folder = Variable("XDG_CONFIG_HOME");
  if (folder.rfind("/", 0) != 0) {
    const passwd* user = Variable("HOME").empty() ? getpwuid(getuid()) : nullptr;
    folder = (user ? user->pw_dir : Variable("HOME")) + "/.config";
  }
  utsname system;
  if (uname(&system) != 0) return "";
  const std::string path = folder + "/numba-adam/loopback/" + system.nodename + "-" + port + ".token";
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (file < 0) return "";
  struct stat status;
  char text[256];
  ssize_t length = 0;
  const bool is_known = fstat(file, &status) == 0;
  const bool is_private = is_known && (status.st_mode & (S_IRWXG | S_IRWXO)) == 0 && status.st_uid == geteuid();
  if (is_private && S_ISREG(status.st_mode)) length = read(file, text, sizeof text);
  close(file);
  const std::string token(text, static_cast<std::size_t>(std::max<ssize_t>(length, 0)));
  return token.substr(0, token.find_first_of("\r\n"));
}

// Returns the access token for an address; empty: none. It is NUMBA_ADAM_TOKEN, or what a server on loopback wrote into
// its file. Without TLS, others on the way could read it: it stays on this machine then.
std::string TokenFor(const std::string& address) {
  const auto begins = [&](const char* host) { return address.rfind(host, 0) == 0; };
  const bool is_loopback = begins("localhost:") || begins("127.0.0.1:") || begins("[::1]:");
  if (!is_loopback && Variable("NUMBA_ADAM_SERVER_CA").empty()) return "";
  const std::string given = Variable("NUMBA_ADAM_TOKEN");
  if (!given.empty() || !is_loopback) return given;
  return LoopbackToken(address.substr(address.rfind(':') + 1));
}

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  // gRPC waits up to two minutes between tries to connect. A server restarts within seconds.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  return grpc::CreateCustomChannel(address, Credentials(), arguments);
}

}  // namespace

Worker::Worker(const std::string& address, ps::ModelSpec spec, std::string worker_id, std::chrono::seconds timeout,
               std::function<void(std::uint64_t)> on_rewind)
    : stub_(ps::ParameterService::NewStub(Connect(address))),
      address_(address),
      token_(TokenFor(address)),
      spec_(std::move(spec)),
      worker_id_(std::move(worker_id)),
      timeout_(timeout),
      on_rewind_(std::move(on_rewind)) {}

void Worker::Retry(const std::function<grpc::Status(grpc::ClientContext*)>& attempt) {
  static std::mt19937 random{std::random_device{}()};
  const auto deadline = std::chrono::system_clock::now() + timeout_;
  for (int ceiling = 50;; ceiling = std::min(2 * ceiling, 2000)) {
    grpc::ClientContext context;  // a context is for one try
    context.set_deadline(deadline);
    if (!token_.empty()) context.AddMetadata("authorization", "Bearer " + token_);
    const grpc::Status status = attempt(&context);
    if (status.ok()) return;
    const ps::ErrorDetail detail = DetailOf(context);
    if (detail.reason() == ps::REASON_UNAUTHENTICATED && HasNewToken()) continue;
    const auto pause = std::chrono::milliseconds(detail.retry_after_milliseconds() + random() % ceiling);
    if (!IsTransient(status.error_code(), detail.reason()) || std::chrono::system_clock::now() + pause >= deadline) {
      throw CallError(status, detail);
    }
    std::this_thread::sleep_for(pause);
  }
}

// Reads the token again: a server on loopback that starts again has another.
bool Worker::HasNewToken() {
  const std::string before = std::exchange(token_, TokenFor(address_));
  return token_ != before;
}

template <class Request, class Response, class Header>
Response Worker::Send(std::unique_ptr<grpc::ClientWriter<Request>> (ps::ParameterService::Stub::*method)(
                          grpc::ClientContext*, Response*),
                      Header header, const std::string& payload) {
  header.set_total_bytes(payload.size());
  header.set_checksum_kind(ps::CHECKSUM_KIND_CRC32C);
  Response answer;
  Retry([&](grpc::ClientContext* context) {
    answer.Clear();
    const auto writer = (stub_.get()->*method)(context, &answer);
    Request message;
    *message.mutable_header() = header;
    bool is_open = writer->Write(message);  // false: the server has answered already
    for (std::size_t offset = 0; is_open && offset < payload.size(); offset += kChunkBytes) {
      message.mutable_chunk()->set_offset(offset);
      message.mutable_chunk()->set_data(payload.substr(offset, kChunkBytes));
      is_open = writer->Write(message);
    }
    message.mutable_trailer()->set_checksum(Crc32c(payload));
    if (is_open) writer->Write(message);
    writer->WritesDone();
    return writer->Finish();
  });
  return answer;
}

void Worker::Create(const Arrays& values) {
  ps::CreateModelHeader header;
  *header.mutable_spec() = spec_;
  header.set_request_id(RandomId());
  header.set_exist_ok(true);
  header.set_after_state_id("");
  const std::string payload = BytesOf(values);
  try {
    Send(&ps::ParameterService::Stub::CreateModel, header, payload);
  } catch (const CallError& error) {
    if (error.detail.reason() != ps::REASON_REWOUND) throw;
    // A model of this name was deleted. Say that this creation comes after it.
    header.set_request_id(RandomId());
    header.set_after_state_id(error.detail.state().state_id());
    Send(&ps::ParameterService::Stub::CreateModel, header, payload);
  }
}

Arrays Worker::Pull() {
  ps::PullRequest request;
  request.set_model(spec_.name());
  request.set_checksum_kind(ps::CHECKSUM_KIND_CRC32C);
  ps::PullHeader header;
  std::string payload;
  Retry([&](grpc::ClientContext* context) {
    const auto reader = stub_->Pull(context, request);
    ps::PullResponse message;
    std::optional<std::uint64_t> checksum;
    payload.clear();
    while (reader->Read(&message)) {
      if (message.has_header()) {
        header = message.header();
        payload.reserve(header.total_bytes());
      } else if (message.has_chunk()) {
        payload += message.chunk().data();
      } else if (message.has_trailer()) {
        checksum = message.trailer().checksum();
      }
    }
    const grpc::Status status = reader->Finish();
    if (!status.ok()) return status;
    const bool is_complete = checksum && payload.size() == header.total_bytes();
    if (is_complete && (payload.empty() || *checksum == Crc32c(payload))) return status;
    return grpc::Status(grpc::DATA_LOSS, "the pulled parameters are damaged");
  });
  Notice(header.state());
  state_ = header.state();
  Arrays arrays;
  const char* from = payload.data();
  for (const auto& tensor : spec_.tensors()) {
    auto& values = arrays[tensor.name()];
    values.resize(SizeOf(tensor));
    const std::size_t bytes = values.size() * sizeof(double);
    if (bytes != 0) std::memcpy(values.data(), from, bytes);
    from += bytes;
  }
  return arrays;
}

std::optional<ps::PushAck> Worker::Push(const Arrays& gradients) {
  const ps::StatePoint computed_from = state_;
  if (!session_.is_open) OpenSession();
  if (state_.state_id() != computed_from.state_id()) return std::nullopt;
  ps::PushHeader header;
  header.set_model(spec_.name());
  header.set_state_id(session_.state_id);
  header.set_worker_id(worker_id_);
  header.set_epoch(session_.epoch);
  header.set_sequence(session_.sequence);
  header.set_base_version(computed_from.version());
  header.set_dtype(spec_.dtype());
  *header.mutable_tensors() = spec_.tensors();
  try {
    // All tries have the same number and content, so the server applies the push once.
    const auto answer = Send(&ps::ParameterService::Stub::Push, header, BytesOf(gradients));
    ++session_.sequence;
    return answer.ack();
  } catch (const CallError& error) {
    if (error.detail.sequence_recorded()) {
      ++session_.sequence;  // refused for good: the number is used
    } else {
      session_.is_open = false;  // the push may have arrived: its number must not get other content
    }
    if (error.detail.reason() != ps::REASON_REWOUND) throw;
    Notice(error.detail.state());
    return std::nullopt;
  }
}

// Opens a session for the current state. All tries have the same nonce.
void Worker::OpenSession() {
  ps::OpenSessionRequest request;
  request.set_model(spec_.name());
  request.set_worker_id(worker_id_);
  request.set_nonce(RandomId());
  request.set_state_id(state_.state_id());
  request.set_seen_epoch(session_.state_id == state_.state_id() ? session_.epoch : 0);
  ps::OpenSessionResponse answer;
  const auto attempt = [&](grpc::ClientContext* context) { return stub_->OpenSession(context, request, &answer); };
  try {
    Retry(attempt);
  } catch (const CallError& error) {
    if (error.detail.reason() == ps::REASON_REWOUND) return Notice(error.detail.state());
    // This process has had no session: it takes over from an earlier process of the same worker, once.
    if (request.seen_epoch() != 0 || error.detail.epoch() == 0) throw;
    request.set_nonce(RandomId());
    request.set_seen_epoch(error.detail.epoch());
    Retry(attempt);
  }
  session_ = {answer.state().state_id(), answer.epoch(), answer.first_sequence(), true};
}

// Looks at a state that the server reported. Another id means that steps were lost.
void Worker::Notice(const ps::StatePoint& state) {
  if (state_.state_id().empty() || state_.state_id() == state.state_id()) return;
  session_.is_open = false;
  state_ = state;
  on_rewind_(state.first_version());
}

std::string Worker::BytesOf(const Arrays& arrays) const {
  std::string bytes;
  for (const auto& tensor : spec_.tensors()) {
    const auto& values = arrays.at(tensor.name());
    if (values.size() != SizeOf(tensor)) {
      throw std::invalid_argument(tensor.name() + ": expected " + std::to_string(SizeOf(tensor)) + " values, got " +
                                  std::to_string(values.size()));
    }
    bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double));
  }
  return bytes;
}

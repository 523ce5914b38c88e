#include "server/http/tls.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

// What OpenSSL first complained of: the cause, what follows is who passed it
// on. Its texts name no secrets.
std::string FirstError() {
  const unsigned long code = ERR_peek_error();
  ERR_clear_error();
  if (ERR_SYSTEM_ERROR(code)) return std::strerror(ERR_GET_REASON(code));
  if (ERR_GET_LIB(code) == ERR_LIB_PEM &&
      ERR_GET_REASON(code) == PEM_R_NO_START_LINE) {
    return "it holds none in PEM";
  }
  if (ERR_GET_LIB(code) == ERR_LIB_PEM &&
      ERR_GET_REASON(code) == PEM_R_BAD_PASSWORD_READ) {
    return "it is encrypted, and there is nobody to ask for the passphrase";
  }
  if (ERR_GET_LIB(code) == ERR_LIB_X509 &&
      ERR_GET_REASON(code) == X509_R_KEY_VALUES_MISMATCH) {
    return "it is not the key of the certificate";
  }
  const char* const reason = ERR_reason_error_string(code);
  return reason == nullptr ? "unknown error" : reason;
}

absl::Status BadFile(const char* what, const std::string& path) {
  return absl::InvalidArgumentError(
      absl::StrCat("TLS ", what, " ", path, ": ", FirstError()));
}

// Of what a client offers, HTTP/1.1; one that offers only others is told so.
int SelectProtocol(SSL*, const unsigned char** out, unsigned char* out_size,
                   const unsigned char* offered, unsigned offered_size, void*) {
  static constexpr unsigned char kHttp11[] = "\x08http/1.1";
  unsigned char* selected = nullptr;
  if (SSL_select_next_proto(&selected, out_size, kHttp11, sizeof(kHttp11) - 1,
                            offered, offered_size) != OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  *out = selected;
  return SSL_TLSEXT_ERR_OK;
}

}  // namespace

ssize_t TlsSession::ToErrno(int result) {
  switch (SSL_get_error(ssl_.get(), result)) {
    case SSL_ERROR_WANT_WRITE:
      receive_needs_write_ = true;
      [[fallthrough]];
    case SSL_ERROR_WANT_READ:
      errno = EAGAIN;
      return -1;
    case SSL_ERROR_ZERO_RETURN:
      return 0;
    case SSL_ERROR_SYSCALL:
      if (errno == 0 || errno == EAGAIN) errno = EPROTO;
      return -1;
    default:
      errno = EPROTO;
      return -1;
  }
}

ssize_t TlsSession::Receive(char* out, size_t size) {
  ERR_clear_error();
  errno = 0;
  receive_needs_write_ = false;
  const int result = SSL_read(ssl_.get(), out, std::min<size_t>(size, INT_MAX));
  return result > 0 ? result : ToErrno(result);
}

ssize_t TlsSession::Send(const char* data, size_t size) {
  ERR_clear_error();
  errno = 0;
  const int result =
      SSL_write(ssl_.get(), data, std::min<size_t>(size, INT_MAX));
  if (result > 0) return result;
  const bool needs_write = receive_needs_write_;
  if (ToErrno(result) == 0) errno = EPROTO;  // The peer has said goodbye.
  receive_needs_write_ = needs_write;
  return -1;
}

void TlsSession::SendClose() {
  if (!is_established()) return;
  ERR_clear_error();
  SSL_shutdown(ssl_.get());
}

absl::StatusOr<std::unique_ptr<TlsContext>> TlsContext::Create(
    const TlsFiles& files) {
  std::unique_ptr<TlsContext> tls(new TlsContext(files));
  tls->versions_ = tls->Versions();
  QUIRE_ASSIGN_OR_RETURN(tls->context_, tls->Load());
  return tls;
}

std::unique_ptr<TlsSession> TlsContext::NewSession(int fd) {
  SSL* const ssl = SSL_new(context_.get());
  if (ssl == nullptr || SSL_set_fd(ssl, fd) != 1) {
    SSL_free(ssl);
    return nullptr;
  }
  SSL_set_accept_state(ssl);
  return std::make_unique<TlsSession>(ssl);
}

absl::StatusOr<bool> TlsContext::ReloadIfChanged() {
  std::vector<FileVersion> versions = Versions();
  if (versions == versions_) return false;
  versions_ = std::move(versions);
  QUIRE_ASSIGN_OR_RETURN(context_, Load());
  return true;
}

std::vector<TlsContext::FileVersion> TlsContext::Versions() const {
  std::vector<FileVersion> versions;
  for (const std::string* path :
       {&files_.certificate, &files_.private_key, &files_.client_authorities}) {
    struct stat info = {};
    if (!path->empty()) stat(path->c_str(), &info);
    versions.push_back({static_cast<int64_t>(info.st_ino), info.st_size,
                        info.st_mtim.tv_sec, info.st_mtim.tv_nsec});
  }
  return versions;
}

absl::StatusOr<TlsContext::Context> TlsContext::Load() const {
  ERR_clear_error();
  Context context(SSL_CTX_new(TLS_server_method()), &SSL_CTX_free);
  if (context == nullptr) return absl::ResourceExhaustedError(FirstError());
  SSL_CTX* const ctx = context.get();
  SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
  SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                               SSL_OP_IGNORE_UNEXPECTED_EOF);
  // What is not sent yet stays in a buffer that may grow and move; an idle
  // connection keeps no buffers.
  SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE |
                            SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                            SSL_MODE_RELEASE_BUFFERS);
  // A key with a passphrase is an error, not a question on the terminal.
  SSL_CTX_set_default_passwd_cb(ctx, [](char*, int, int, void*) { return 0; });
  SSL_CTX_set_alpn_select_cb(ctx, SelectProtocol, nullptr);
  if (SSL_CTX_use_certificate_chain_file(ctx, files_.certificate.c_str()) !=
      1) {
    return BadFile("certificate", files_.certificate);
  }
  if (SSL_CTX_use_PrivateKey_file(ctx, files_.private_key.c_str(),
                                  SSL_FILETYPE_PEM) != 1 ||
      SSL_CTX_check_private_key(ctx) != 1) {
    return BadFile("private key", files_.private_key);
  }
  if (!files_.client_authorities.empty()) {
    if (SSL_CTX_load_verify_file(ctx, files_.client_authorities.c_str()) != 1) {
      return BadFile("client authorities", files_.client_authorities);
    }
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT,
                       nullptr);
    // Sessions are resumed only where the same was asked of the client.
    static constexpr unsigned char kName[] = "quire";
    SSL_CTX_set_session_id_context(ctx, kName, sizeof(kName) - 1);
  }
  return context;
}

}  // namespace quire

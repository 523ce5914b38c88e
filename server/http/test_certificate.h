// Certificates for tests.
#ifndef QUIRE_SERVER_HTTP_TEST_CERTIFICATE_H_
#define QUIRE_SERVER_HTTP_TEST_CERTIFICATE_H_

#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace quire {

// A key and its certificate, in PEM files of one directory. Signed by itself,
// and then an authority's, or by `issuer`, for what is in `alternative_name`
// ("DNS:localhost", "IP:127.0.0.1").
class Certificate {
  // Before its uses: its type is what the reader returns.
  template <typename Reader>
  static auto Read(const std::string& path, Reader reader) {
    FILE* const file = std::fopen(path.c_str(), "r");
    EXPECT_NE(file, nullptr) << path;
    const auto read = reader(file);
    std::fclose(file);
    return read;
  }

 public:
  Certificate(const std::string& stem, const std::string& name,
              const Certificate* issuer = nullptr,
              const std::string& alternative_name = "")
      : certificate_file(absl::StrCat(stem, ".pem")),
        key_file(absl::StrCat(stem, ".key")) {
    EVP_PKEY* const key = EVP_EC_gen("P-256");
    X509* const certificate = X509_new();
    static long serial = 1;
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), serial++);
    X509_set_version(certificate, X509_VERSION_3);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 24 * 3600);
    X509_set_pubkey(certificate, key);
    X509_NAME* const subject = X509_get_subject_name(certificate);
    X509_NAME_add_entry_by_txt(
        subject, "CN", MBSTRING_ASC,
        reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
    EVP_PKEY* issuer_key = nullptr;
    X509* issuer_certificate = nullptr;
    if (issuer != nullptr) {
      issuer_key = Read(issuer->key_file, [](FILE* file) {
        return PEM_read_PrivateKey(file, nullptr, nullptr, nullptr);
      });
      issuer_certificate = Read(issuer->certificate_file, [](FILE* file) {
        return PEM_read_X509(file, nullptr, nullptr, nullptr);
      });
    }
    X509* const by = issuer == nullptr ? certificate : issuer_certificate;
    X509_set_issuer_name(certificate, X509_get_subject_name(by));
    AddExtension(certificate, by, NID_basic_constraints,
                 issuer == nullptr ? "critical,CA:TRUE" : "CA:FALSE");
    if (!alternative_name.empty()) {
      AddExtension(certificate, by, NID_subject_alt_name, alternative_name);
    }
    X509_sign(certificate, issuer == nullptr ? key : issuer_key, EVP_sha256());
    EVP_PKEY_free(issuer_key);
    X509_free(issuer_certificate);
    Write(certificate_file,
          [&](FILE* file) { return PEM_write_X509(file, certificate); });
    Write(key_file, [&](FILE* file) {
      return PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr,
                                  nullptr);
    });
    X509_free(certificate);
    EVP_PKEY_free(key);
  }

  const std::string certificate_file, key_file;

 private:
  static void AddExtension(X509* certificate, X509* issuer, int kind,
                           const std::string& value) {
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
    X509_EXTENSION* const extension =
        X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str());
    ASSERT_NE(extension, nullptr) << value;
    X509_add_ext(certificate, extension, -1);
    X509_EXTENSION_free(extension);
  }
  // As tools that renew certificates do: a new file takes the place.
  template <typename Writer>
  static void Write(const std::string& path, Writer writer) {
    const std::string temporary = absl::StrCat(path, ".new");
    FILE* const file = std::fopen(temporary.c_str(), "w");
    ASSERT_NE(file, nullptr);
    EXPECT_EQ(writer(file), 1);
    std::fclose(file);
    ASSERT_EQ(std::rename(temporary.c_str(), path.c_str()), 0);
  }
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_TEST_CERTIFICATE_H_

// Certificates for tests.
#ifndef QUIRE_SERVER_HTTP_TEST_CERTIFICATE_H_
#define QUIRE_SERVER_HTTP_TEST_CERTIFICATE_H_

#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace quire {

// A key and its certificate, signed by itself, in PEM files of one directory.
class Certificate {
 public:
  Certificate(const std::string& stem, const std::string& name)
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
    X509_set_issuer_name(certificate, subject);
    X509_sign(certificate, key, EVP_sha256());
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

// Whether these programs watch themselves: their times and their memory are
// then the sanitizer's, their counts and order are not.
#ifndef QUIRE_TESTS_FRONT_END_SANITIZED_H_
#define QUIRE_TESTS_FRONT_END_SANITIZED_H_

namespace quire {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kIsSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr bool kIsSanitized = true;
#else
inline constexpr bool kIsSanitized = false;
#endif
#else
inline constexpr bool kIsSanitized = false;
#endif

}  // namespace quire

#endif  // QUIRE_TESTS_FRONT_END_SANITIZED_H_

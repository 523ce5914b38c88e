// A libnccl.so.2 for tests that has its version and nothing else.
extern "C" int ncclGetVersion(int* version) {
  *version = 22900;
  return 0;
}

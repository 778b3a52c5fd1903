# Cross-compiles for 64-bit ARM with Debian's g++-aarch64-linux-gnu; what is built runs under
# qemu-user. Used by the preset "neon".
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)

# fm: far memory for virtual machines on stock hosts.
#
#   make          static musl tools in build/bin, libfm.a and fluidmem.pc in build/lib
#   make demo     a stock QEMU guest on far memory, start to end
#   make check    every test (installs what is missing)
#   make fuzz-long  ten minutes of fuzzing for each parser
#   make soak     checkers for FM_SOAK_SECONDS (1800) while everything is killed, stopped, replaced
#   make kills    SIGKILLs for FM_KILL_SECONDS (300) under checkers: dir:, three memcached, a VM
#   make bench    figures beside their references
#   make SAN=asan | SAN=tsan      the same tools as glibc sanitizer builds in build-asan, build-tsan
#   make SAN=crash                ... as a build that dies where it is told to, in build-crash
#
# A new tool is a new folder below cmd/; a new library module is a new file in lib/.

VERSION := 0.1.0
SAN     ?=
B       ?= build$(if $(SAN),-$(SAN))

# C modules an ordinary (glibc) program links to: the client side only.
CLIENT  := lib/client.c lib/ctl.c

TOOLS   := $(notdir $(wildcard cmd/*))
LIB     := $(filter-out lib/client.c,$(wildcard lib/*.c))
UNITS   := $(patsubst tests/unit/%.c,%,$(wildcard tests/unit/test_*.c))

HOSTCC  := cc
WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wwrite-strings \
           -Wpointer-arith -Wvla -Wformat=2 -Wundef $(if $(CI),-Werror)
CFLAGS  ?= -O2 -g
BASE    := -std=c11 -D_GNU_SOURCE -DFM_VERSION='"$(VERSION)"' -Ilib $(WARN) \
           -ffile-prefix-map=$(CURDIR)=. -fno-strict-aliasing -DTHREADED # zookeeper.h: with its threads

ifeq ($(SAN),)
CC      := musl-gcc
MISSING := $(strip $(foreach p,gcc g++ musl-gcc cmake bison flex,$(if $(shell command -v $(p)),,$(p))))
# `make demo` and `make check` install them first, then come back here.
ifneq ($(and $(MISSING),$(if $(filter demo check clean,$(MAKECMDGOALS)),,yes)),)
$(error $(MISSING): not found: run `sudo tests/install.sh build`)
endif
# musl-gcc hides the system's headers; the kernel's are wanted, after musl's own.
TOOLCF   = $(BASE) $(CFLAGS) -ffunction-sections -fdata-sections -idirafter /usr/include -idirafter /usr/include/x86_64-linux-gnu -I$(B)/deps/include -isystem $(B)/deps/ipsec-mb
TOOLLD   = -static -Wl,--gc-sections -Wl,-z,stack-size=1048576 -L$(B)/deps/lib
DEPS    := $(B)/deps/.done
else ifeq ($(SAN),asan)
CC      := gcc
TOOLCF   = $(BASE) -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -DFM_DEBUG=1
TOOLLD   = -fsanitize=address,undefined
DEPS    :=
else ifeq ($(SAN),crash)
# Dies where it is told to: lib/crash.h.
CC      := gcc
TOOLCF   = $(BASE) -O1 -g -DFM_DEBUG=1 -DFM_CRASH=1
TOOLLD   =
DEPS    :=
else ifeq ($(SAN),tsan)
CC      := gcc
TOOLCF   = $(BASE) -O1 -g -fsanitize=thread -fno-omit-frame-pointer -DFM_DEBUG=1
TOOLLD   = -fsanitize=thread
DEPS    :=
endif
# Static links take what a tool uses; --as-needed makes the sanitizer builds' shared ones do the same.
# The assembler code of the musl build, which is for any C library (SAN builds go without when it is not there).
ifneq ($(SAN),)
ifneq ($(wildcard build/deps/ipsec-mb/fm-ipsec-mb.h),)
BASE    += -isystem build/deps/ipsec-mb
TOOLLD  += -Lbuild/deps/lib
endif
endif
GCM     := $(if $(SAN),$(and $(wildcard build/deps/ipsec-mb/fm-ipsec-mb.h),-l:libIPSec_MB.a),-lIPSec_MB)
LIBS    := -Wl,--as-needed -lmemcached -lhashkit -lzookeeper_mt -lsodium -llz4 -ljansson -lexpat -lm -lpthread

.PHONY: soak kills all tools client units guest demo check fuzz-long bench clean deps
.SECONDARY:
all: tools client
tools: $(TOOLS:%=$(B)/bin/%)
client: $(B)/lib/libfm.a $(B)/lib/fluidmem.pc
units: $(UNITS:%=$(B)/tests/%)
deps: $(DEPS)

# --- dependencies: fetched, verified and built static by deps/build.sh
# (one whose source and recipe are as before is not built again)
$(B)/deps/.done: deps/build.sh $(wildcard deps/*.sum deps/*.awk)
	deps/build.sh $(B)/deps
	touch $@

# --- tools
$(B)/obj/%.o: %.c Makefile | $(DEPS)
	@mkdir -p $(@D)
	$(CC) $(TOOLCF) -MMD -MP -c -o $@ $<

$(B)/lib/libfmcore.a: $(LIB:%.c=$(B)/obj/%.o)
	@mkdir -p $(@D)
	rm -f $@ && ar rcsD $@ $^

define tool
$(B)/bin/$(1): $(patsubst %.c,$(B)/obj/%.o,$(wildcard cmd/$(1)/*.c)) $(B)/lib/libfmcore.a $(DEPS)
	@mkdir -p $$(@D)
	$$(CC) $$(TOOLCF) $$(TOOLLD) -o $$@ $$(filter %.o %.a,$$^) $$(LIBS) $(GCM)
endef
$(foreach t,$(TOOLS),$(eval $(call tool,$(t))))

# --- unit tests: one program a file, printing TAP
$(B)/tests/%: $(B)/obj/tests/unit/%.o $(B)/lib/libfmcore.a $(DEPS)
	@mkdir -p $(@D)
	$(CC) $(TOOLCF) $(TOOLLD) -o $@ $(filter %.o %.a,$^) $(LIBS) $(GCM)

# --- the guest of make demo and tests/guest: our static checker and fm-online in an initramfs
guest: $(B)/guest/initramfs
$(B)/guest/memcheck: tests/guest/memcheck.c Makefile
	@mkdir -p $(@D)
	$(CC) $(TOOLCF) $(TOOLLD) -o $@ $<

$(B)/guest/initramfs: $(B)/guest/memcheck $(B)/bin/fm-online tests/guest/init tests/guest/initramfs.sh \
		contrib/initramfs-tools/scripts/init-premount/fm-online
	tests/guest/initramfs.sh $@ $(B)/guest/memcheck $(B)/bin/fm-online

# --- the client library, by the host's compiler
$(B)/obj-client/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(HOSTCC) $(BASE) $(CFLAGS) -fPIC -MMD -MP -c -o $@ $<

$(B)/lib/libfm.a: $(CLIENT:%.c=$(B)/obj-client/%.o)
	@mkdir -p $(@D)
	rm -f $@ && ar rcsD $@ $^

$(B)/lib/fluidmem.pc: lib/fluidmem.pc.in Makefile
	@mkdir -p $(@D)
	sed -e 's|@LIBDIR@|$(abspath $(B)/lib)|; s|@INCLUDEDIR@|$(abspath lib)|; s|@VERSION@|$(VERSION)|' $< > $@

demo:
	B=$(B) tests/guest/demo.sh

check:
	B=$(B) tests/check.sh

# Ten minutes for each parser of outside bytes; FM_FUZZ_SECONDS says otherwise.
fuzz-long:
	B=$(B) FM_FUZZ_SECONDS=$(or $(FM_FUZZ_SECONDS),600) tests/check.sh fuzz

bench: all
	bench/run.sh

soak: all
	@mkdir -p $(B)/soak && rm -rf $(B)/soak/work && mkdir $(B)/soak/work
	for c in torture client; do $(HOSTCC) -O1 -std=c11 -D_GNU_SOURCE -Ilib -o $(B)/soak/$$c tests/stress/$$c.c $(B)/lib/libfm.a -lpthread || exit 1; done
	python3 tests/stress/soak.py $(abspath $(B)/bin) $(abspath $(B)/soak) $(abspath $(B)/soak/work) $${FM_SOAK_SECONDS:-1800}

kills: all guest
	FM_BIN=$(abspath $(B)/bin) FM_LIB=$(abspath $(B)/lib) FM_KILL_SECONDS=$${FM_KILL_SECONDS:-300} bats tests/bats/kills.bats tests/guest/kills.bats

clean:
	rm -rf build build-asan build-tsan build-crash

-include $(shell find $(B)/obj $(B)/obj-client -name '*.d' 2>/dev/null)

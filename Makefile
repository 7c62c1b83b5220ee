# GNU make.  "make demo" and "make check" install what they need, build and
# run.  The targets for a release are in tests/release.mk.

ifneq ($(words $(CURDIR))$(findstring :,$(CURDIR)),1)
$(error $(CURDIR): LD_PRELOAD cannot name a path with a space or colon: \
  move this directory)
endif

PREFIX  ?= /usr/local
BINDIR  ?= $(PREFIX)/bin
LIBDIR  ?= $(PREFIX)/lib
MANDIR  ?= $(PREFIX)/share/man
BASHCOMPDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHCOMPDIR  ?= $(PREFIX)/share/zsh/site-functions
CFLAGS  ?= -O2 -g -fstack-protector-strong \
           -U_FORTIFY_SOURCE $(if $(SANITIZE),,-D_FORTIFY_SOURCE=2)
INSTALL ?= install

# The launcher has the version, so that it is right wherever the file is copied
# to.  The library gets it from there.
VERSION := $(shell sed -n 's/^version=//p' scripts/mcshim)
# Its parts for --probe, --try and so on go to a directory of their own.
launcher := scripts/mcshim
launcher_parts := $(addprefix scripts/mcshim-,captive probe status top try \
                    verify)

musl := $(findstring musl-gcc,$(CC))

# Warnings are errors only in CI: a user's compiler may know more of them.
# musl-gcc searches only musl's headers; nbdkit's are beside glibc's.
common := -std=gnu11 -pthread -Wall -Wextra -Wshadow -Wstrict-prototypes \
          -Wno-psabi $(if $(CI),-Werror) \
          $(if $(musl),-idirafter /usr/include)

# libatomic where the processor has no 64-bit atomics (armel).
atomic = $(if $(filter 1,$(shell echo __GCC_ATOMIC_LLONG_LOCK_FREE | \
           $(CC) $(CFLAGS) -E -P -x c -)),-latomic)

# SANITIZE=thread or SANITIZE=address goes to a directory of its own.
build := build$(if $(SANITIZE),-$(SANITIZE))
lib   := $(if $(SANITIZE),$(build)/)libmcshim.so
sanitize_thread  := -fsanitize=thread
sanitize_address := -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize := $(if $(SANITIZE),$(or $(sanitize_$(SANITIZE)),\
              $(error SANITIZE is thread or address, not "$(SANITIZE)")) \
              -fno-omit-frame-pointer)

lib_src := $(wildcard interpose/*.[cS]) shim.c requests.c connection.c \
  plugin.c statsfile.c spread.c group.c enter.c replicate.c order.c helpers.c \
  policy.c
lib_obj := $(addprefix $(build)/,$(addsuffix .o,$(basename $(lib_src))))
# The files of interpose/ run before a sanitizer's runtime is up.
$(build)/interpose/%.o: sanitize_this :=
sanitize_this = $(sanitize)

plugin_dir := tests/plugins
# musl has no dlvsym for dlsymmer.
plugins := $(patsubst tests/plugins/%.c,$(plugin_dir)/%.so,\
             $(filter-out $(if $(musl),%/dlsymmer.c),\
               $(wildcard tests/plugins/*.c)))
relay   := tests/clients/relay
checker := mcshim-checker
units   := $(patsubst tests/unit/%.c,$(build)/unit/%,\
             $(wildcard tests/unit/*.c))

# Without pod2man, which comes with perl, the manual pages are left out.
man := $(build)/mcshim.1 $(build)/libmcshim.7
have_man := $(if $(shell command -v pod2man),$(man))
# Without libnbd, so is the checker of --verify.  It is for this machine.
have_checker := $(if $(filter build,$(build)),$(shell \
                  pkg-config --exists libnbd 2>/dev/null && echo $(checker)))

all: $(lib) $(if $(SANITIZE),,$(have_man)) $(have_checker)

$(checker): $(wildcard verify/*.[ch]) Makefile
	$(CC) $(common) $(CPPFLAGS) $(CFLAGS) -o $@ $(filter %.c,$^) $(LDFLAGS) \
	  $$(pkg-config --cflags --libs libnbd)

$(build)/mcshim.1: docs/mcshim.pod
$(build)/libmcshim.7: docs/libmcshim.pod
$(man): Makefile scripts/mcshim
	@mkdir -p $(@D)
	pod2man --section=$(subst .,,$(suffix $@)) --center="mcshim manual" \
	  --release="mcshim $(VERSION)" --errors=die \
	  docs/$(basename $(@F)).pod $@

$(lib): $(lib_obj)
	$(CC) -shared -pthread $(CFLAGS) $(sanitize) -Wl,-z,defs -Wl,-z,relro \
	  -Wl,-z,now -Wl,--as-needed $(LDFLAGS) -o $@ $^ -ldl $(atomic) $(LDLIBS)
	$(if $(SANITIZE),,scripts/check-library $@)

$(build)/%.o: %.c Makefile scripts/mcshim
	@mkdir -p $(@D)
	$(CC) $(common) -Wmissing-prototypes -fPIC -fvisibility=hidden -I. \
	  -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DMCSHIM_VERSION='"$(VERSION)"' $(CPPFLAGS) $(CFLAGS) \
	  $(sanitize_this) -MMD -MP -c -o $@ $<

$(build)/%.o: %.S Makefile
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# What the tests use: plugins for nbdkit, libraries to preload beside the shim
# (before glibc 2.34 these need libdl; musl has none), and programs that test
# without a server.

libdl := $(if $(musl),,-Wl,--no-as-needed -l:libdl.so.2)

# A library with a fault, which the tests must find: any handle serves writes.
any_handle := $(build)/any-handle/libmcshim.so

test-programs: test-plugins $(relay) $(checker) units $(any_handle)
test-plugins: $(plugins)

$(any_handle): spread.c $(filter-out $(build)/spread.o,$(lib_obj)) spread.h
	@mkdir -p $(@D)
	sed 's/s->any = any;/s->any = any || true;/' spread.c > $(@D)/spread.c
	$(CC) $(common) -fPIC -fvisibility=hidden -I. -D_GNU_SOURCE $(CPPFLAGS) \
	  $(CFLAGS) -shared -o $@ $(@D)/spread.c $(filter %.o,$^) $(LDFLAGS) -ldl \
	  $(atomic)

$(plugin_dir)/%.so: tests/plugins/%.c Makefile
	@mkdir -p $(build) $(@D)
	$(CC) $(common) -fPIC -shared $(CPPFLAGS) $(CFLAGS) -MMD -MP \
	  -MF $(build)/$(subst /,-,$@).d -o $@ $< $(LDFLAGS) $(libdl)

$(relay): %: %.c latency.h Makefile
	$(CC) $(common) -D_GNU_SOURCE $(CPPFLAGS) $(CFLAGS) -o $@ $< $(LDFLAGS)

# The unit tests are linked with the files that do not use nbdkit.  They need
# only a C compiler.  Tests of threads control these: the functions named here
# go to tests/unit/threads.h.  oldglibc.h is left out, as its names have
# versions, which --wrap does not see.
units: $(units)
unit_obj := $(patsubst %,$(build)/unit/%.o,policy helpers order replicate enter group spread)
.SECONDARY: $(unit_obj) $(units:$(build)/unit/%=$(build)/unit/test-%.o)
wrapped := pthread_mutex_lock pthread_mutex_unlock pthread_cond_init \
  pthread_cond_destroy pthread_cond_wait pthread_cond_timedwait \
  pthread_cond_signal pthread_cond_broadcast pthread_create pthread_join \
  clock_gettime malloc calloc strdup free mmap munmap
$(build)/unit/helpers $(build)/unit/replicate $(build)/unit/spread: \
  wrap := $(wrapped:%=-Wl,--wrap=%)

$(build)/unit/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(common) -Wmissing-prototypes -I. -D_GNU_SOURCE \
	  -DMCSHIM_OLDGLIBC_H $(CPPFLAGS) $(CFLAGS) \
	  $(if $(SANITIZE),-O1) $(sanitize) -MMD -MP -c -o $@ $<

# Without optimisation the tests compile in a fifth of the time.
$(build)/unit/test-%.o: tests/unit/%.c Makefile
	@mkdir -p $(@D)
	$(CC) $(common) -I. -D_GNU_SOURCE $(CPPFLAGS) $(CFLAGS) -U_FORTIFY_SOURCE \
	  -O0 $(sanitize) -MMD -MP -c -o $@ $<

$(build)/unit/%: $(build)/unit/test-%.o $(unit_obj)
	$(CC) $(CFLAGS) $(sanitize) $(wrap) -o $@ $(filter %.o,$^) $(LDFLAGS)

# Does a program with this sanitizer link, and run?
$(build)/probe: Makefile
	@mkdir -p $(@D)
	echo "int main (void) { return 0; }" | \
	  $(CC) $(CFLAGS) $(sanitize) -x c -o $@ - $(LDFLAGS)

# $(call run,TARGET,PACKAGES,FIRST,COMMAND): installs that set of packages,
# makes what is needed first, and runs the command.  This takes a second make:
# the compiler may be missing.
define rule
.PHONY: $1
$1:
	scripts/deps $2
	$(if $3,$$(MAKE) --no-print-directory $3)
	$4
endef
run = $(eval $(call rule,$1,$2,$3,$4))
# On all processors, unless make was told how many.
jobs = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))

$(call run,demo,demo,$$(jobs) all tests/plugins/wbcache.so,scripts/demo)
$(call run,check,check,$$(jobs) all test-programs,tests/run)

# Packages, in build/deb and build/rpm.
deb rpm:
	scripts/deps $@
	scripts/package $@

install: $(lib) $(have_man) $(have_checker)
	$(INSTALL) -D -m 755 $(lib) "$(DESTDIR)$(LIBDIR)/libmcshim.so"
	$(INSTALL) -D -m 644 -t "$(DESTDIR)$(LIBDIR)/mcshim" $(launcher_parts)
	test -z "$(have_checker)" || \
	  $(INSTALL) -m 755 $(checker) "$(DESTDIR)$(LIBDIR)/mcshim"
	sed 's|^libdir=.*|libdir="$(LIBDIR)"|' $(launcher) > $(build)/mcshim
	$(INSTALL) -D -m 755 $(build)/mcshim "$(DESTDIR)$(BINDIR)/mcshim"
	$(INSTALL) -D -m 644 completion/mcshim.bash "$(DESTDIR)$(BASHCOMPDIR)/mcshim"
	$(INSTALL) -D -m 644 completion/_mcshim "$(DESTDIR)$(ZSHCOMPDIR)/_mcshim"
	for page in $(have_man); do \
	  $(INSTALL) -D -m 644 -t "$(DESTDIR)$(MANDIR)/man$${page##*.}" $$page || exit; \
	done

# A tarball for machines without a compiler, which works where it is unpacked.
dist = $(build)/mcshim-$(VERSION)-$(firstword $(subst -, ,$(shell \
         $(CC) -dumpmachine)))
dist: $(lib) $(have_man) $(have_checker)
	rm -rf $(dist)
	$(INSTALL) -D -m 755 -t $(dist) $(lib) $(launcher) $(have_checker)
	$(INSTALL) -m 644 $(launcher_parts) README.md LICENSE $(have_man) $(dist)
	tar -C $(build) --owner=0 --group=0 -czf $(dist).tar.gz $(notdir $(dist))
	@echo $(dist).tar.gz

uninstall:
	rm -f "$(DESTDIR)$(BINDIR)/mcshim" "$(DESTDIR)$(LIBDIR)/libmcshim.so" \
	  "$(DESTDIR)$(MANDIR)/man1/mcshim.1" \
	  "$(DESTDIR)$(MANDIR)/man7/libmcshim.7" \
	  "$(DESTDIR)$(BASHCOMPDIR)/mcshim" "$(DESTDIR)$(ZSHCOMPDIR)/_mcshim"
	rm -rf "$(DESTDIR)$(LIBDIR)/mcshim"
	@# Of install's directories, those that hardly anything else uses.
	@rmdir "$(DESTDIR)$(BASHCOMPDIR)" "$(DESTDIR)$(dir $(BASHCOMPDIR))" \
	  "$(DESTDIR)$(ZSHCOMPDIR)" "$(DESTDIR)$(dir $(ZSHCOMPDIR))" \
	  "$(DESTDIR)$(MANDIR)/man1" "$(DESTDIR)$(MANDIR)/man7" 2>/dev/null || :

clean:
	rm -rf build build-* libmcshim.so
	rm -f $(plugins) $(relay) $(checker)

.PHONY: all test-programs test-plugins units deb rpm install \
  dist uninstall clean
.DELETE_ON_ERROR:

-include tests/release.mk
-include $(lib_obj:.o=.d) $(unit_obj:.o=.d) \
         $(wildcard $(build)/*.d $(build)/unit/test-*.d)

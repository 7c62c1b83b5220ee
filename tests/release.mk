# What is run before a release, and what measures; CONTRIBUTING.md describes
# each target, and Makefile has "run".

tests := all test-programs
plugin := tests/plugins/wbcache.so
measured := all $(plugin) $(checker)
# A comma would end an argument.
quick := --quick --only=instructions,flushes,mixed
headline := --only=headline,stacks,vddk

$(call run,check-long,check,$(tests),tests/run --long)
$(call run,check-documents,check,$(tests),tests/documents)
$(call run,check-fresh,fresh,,tests/fresh $(SUITES))
$(call run,check-compat,compat,$(tests),tests/compat/run $(SERVERS))
ifdef SUITES
$(call run,check-upstream,fresh,,CHECK=upstream tests/fresh $(SUITES))
else
$(call run,check-upstream,upstream,all,tests/upstream)
endif
$(call run,check-kernel,kernel,all $(plugin),tests/kernel-client)
$(call run,model,model,,tests/model/run)
$(call run,mutants,mutants,,tests/mutants policy.c helpers.c \
  replicate.c replicate.h enter.c group.c group.h order.c order.h spread.c \
  spread.h latency.h)
$(call run,bench,bench,$(measured),scripts/bench)
$(call run,bench-quick,bench,$(measured),scripts/bench $(quick))
$(call run,bench-headline,compat,all test-plugins $(relay),scripts/bench $(headline))
$(call run,plugin-table,plugins,all,tests/plugin-table $(SERVERS))

unit:
	+@MAKE="$(MAKE)" tests/unit/run

# The second is the upstream filter, in which it must find losses.
SOAK_SECONDS ?= 1800
$(call run,soak,check,$(tests),tests/soak $(SOAK_SECONDS) && \
  tests/soak 60 upstream)

# A sanitizer in the library, inside a server that has none.
check-asan: sanitizer := address
check-tsan: sanitizer := thread
check-asan check-tsan:
	scripts/deps check
	$(MAKE) --no-print-directory $(tests)
	$(MAKE) --no-print-directory SANITIZE=$(sanitizer) all
	tests/run-sanitized $(sanitizer)

$(call run,check-deb,packages,deb,\
  lintian --fail-on error build/deb/mcshim_*.changes && tests/packages deb)
$(call run,check-rpm,packages,rpm,tests/packages rpm)

# The library and the plugins are built by another compiler.
elsewhere = $(MAKE) --no-print-directory CC=$1 build=build-$2 \
  lib=build-$2/libmcshim.so plugin_dir=build-$2/plugins all test-plugins

check-musl:
	scripts/deps musl
	$(MAKE) --no-print-directory $(checker)
	+$(call elsewhere,musl-gcc,musl)
	tests/musl

triples := arm64:aarch64-linux-gnu armel:arm-linux-gnueabi \
  armhf:arm-linux-gnueabihf i386:i686-linux-gnu \
  mips64el:mips64el-linux-gnuabi64 ppc64el:powerpc64le-linux-gnu \
  riscv64:riscv64-linux-gnu s390x:s390x-linux-gnu
archs := $(foreach pair,$(triples),$(firstword $(subst :, ,$(pair))))
ARCH ?= $(archs)
check-cross:
	scripts/deps cross
	$(MAKE) --no-print-directory $(checker)
	@status=0; for arch in $(ARCH); do \
	  $(MAKE) --no-print-directory check-cross-$$arch || status=1; \
	done; exit $$status
check-cross-%:
	+$(call elsewhere,$(or $(patsubst $*:%,%,$(filter $*:%,$(triples))),\
	  $(error ARCH is of $(archs), not "$*"))-gcc,$*)
	MCSHIM_SO=$(CURDIR)/build-$*/libmcshim.so tests/compat/run $*

# The quick ones first.
release_checks := check check-long check-documents check-compat check-fresh \
  check-cross check-musl check-upstream check-deb check-rpm check-kernel check-asan \
  check-tsan model mutants bench-quick soak
release-check:
	@test -z "$$(git status --porcelain)" || { \
	  echo "release-check: first commit or remove what git status shows"; \
	  exit 1; } >&2
	for target in $(release_checks); do \
	  $(MAKE) --no-print-directory $$target || exit; \
	done
	@! grep 'unreleased$$' CHANGELOG.md || { \
	  echo "release-check: CHANGELOG.md: the release has a date"; exit 1; } >&2

.PHONY: unit check-asan check-tsan check-musl check-cross release-check

#!/usr/bin/env bats
# The manual pages render cleanly, and say all that there is to say.

load common

setup ()
{
  common_setup
  source=$BATS_TEST_DIRNAME/..
  pages=("$source/build/mcshim.1" "$source/build/libmcshim.7")
}

# items PATTERN: of the =item lines on stdin, without markup.
items ()
{
  sed -n 's/^=item //p' | sed 's/[A-Z]<\([^<>]*\)>/\1/g' |
    grep -oE -- "$1" | sort -u
}

# section POD FROM
section ()
{
  awk -v from="=head1 $2" '/^=head1/ { on = $0 == from } on' \
    "$source/docs/$1.pod"
}

@test "podchecker finds nothing" {
  for pod in "$source"/docs/*.pod; do
    run -0 podchecker -warnings -warnings "$pod"
    assert_output --partial "pod syntax OK"
    assert_equal "${#lines[@]}" 1
  done
}

@test "man renders the pages without a warning" {
  for page in "${pages[@]}"; do
    LC_ALL=C.UTF-8 MANROFFSEQ='' MANWIDTH=80 run -0 --separate-stderr \
      man --warnings -E UTF-8 -l -Tutf8 -Z "$page"
    # shellcheck disable=SC2154 # run sets it
    assert_equal "$stderr" ""
  done
}

@test "mandoc finds nothing" {
  run -0 mandoc -T lint -W warning "${pages[@]}"
  assert_output ""
}

@test "each option of the launcher, and no other" {
  diff <("$source/scripts/mcshim" --help | grep -oE -- '--[a-z][a-z-]*' |
           sort -u) \
    <(section mcshim OPTIONS | items '^--[a-z][a-z-]*')
}

@test "each knob, and no other" {
  sed -n 's/^  { "\([A-Z_]*\)", set_.*/MCSHIM_\1/p' "$source/policy.c" |
    sort > knobs
  diff knobs <(section libmcshim ENVIRONMENT | items '^MCSHIM_[A-Z_]+')
  diff knobs <(sed -n 's/^| `\(MCSHIM_[A-Z_]*\)`.*/\1/p' \
                 "$source/README.md" | sort)
}

@test "each line of the statistics, and no other" {
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  stop_server
  diff <(cut -d: -f1 "$stats" | sort) \
    <(section libmcshim STATISTICS | items '[a-z_0-9]+')
}

@test "each message of the library and the launcher, with its remedy" {
  python3 - "$source" <<'EOT'
import glob, re, sys

def read(name):
    with open(name) as f:
        return f.read()

def strip(text):
    return re.sub(r"[IBCL]<([^<>]*)>", r"\1", text)

def check(page, pod, section, formats):
    """Each of FORMATS, with a word for what differs, is an item."""
    text = re.search(r"^=head1 %s$(.*?)^=head1" % section, pod, re.M | re.S)[1]
    blocks = strip(text).split("\n\n")
    remedy = {}
    for i, block in enumerate(blocks):
        if block.startswith("=item "):
            # Items in a row share what follows them.
            rest = [b for b in blocks[i:] if not b.startswith("=item ")]
            remedy[block[6:].strip()] = not rest[0].startswith("=")
    errors, printed = [], set()
    for f in formats:
        pattern = re.escape(f).replace("\0", r" ?\S+")
        found = [i for i in remedy if re.fullmatch(pattern, i)]
        printed.update(found)
        if not found:
            errors.append("lacks: " + f.replace("\0", "..."))
        errors += ["no remedy for: " + i for i in found if not remedy[i]]
    errors += ["nothing prints: " + i for i in remedy if i not in printed]
    for e in errors:
        print(page, e)
    return bool(errors)

source = sys.argv[1]

# Every string with a space in it is one, but for what goes to a file, to
# nbdkit's debug output or to --dump-plugin.
string = r'"(?:[^"\\\n]|\\.)*"'
formats, allowed = set(), set()
for name in glob.glob(source + "/*.c") + glob.glob(source + "/interpose/*.c"):
    code = re.sub(r"/\*.*?\*/|^#.*?$", "", read(name), flags=re.S | re.M)
    code = re.sub(r'\bPREFIX "', '"MCSHIM_" "', code)
    code = re.sub(r"\b(nbdkit_debug \(|fprintf \(f,|printf \(|__asm__ \().*?"
                  r"\);", "", code, flags=re.S)
    knobs = re.search(r"knobs\[\] = {.*?^}", code, re.S | re.M)
    for m in re.finditer(r"%s(\s+%s)*" % (string, string), code):
        text = "".join(s[1:-1] for s in re.findall(string, m[0]))
        text = text.replace("\\n", "")
        if text.startswith("mcshim: "):
            text = text[8:]
        text = re.sub(r"%[-.*0-9]*l*[a-z]", "\0", text)
        if re.search("[A-Za-z]", text) and " " in text:
            in_table = knobs and knobs.start() < m.start() < knobs.end()
            (allowed if in_table else formats).add(text)

pod = read(source + "/docs/libmcshim.pod")
bad = check("libmcshim(7)", pod, "MESSAGES", formats)
for text in allowed:
    if text not in " ".join(strip(pod).split()):
        print("libmcshim(7) lacks: " + text)
        bad = True

formats = set()
for name in glob.glob(source + "/scripts/mcshim*"):
    script = read(name).replace("\\\n", "")
    formats |= {"mcshim: " + re.sub(r"\$(\{[^}]*\}|\w+)", "\0", f)
                for f in re.findall(r'\bfail(?:ed)? "([^"]*)"', script)}
bad |= check("mcshim(1)", read(source + "/docs/mcshim.pod"), "DIAGNOSTICS",
             formats)
sys.exit(bad)
EOT
}

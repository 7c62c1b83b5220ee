#!/usr/bin/env bats
# The consistency checker, briefly, in each thread model; tests/soak does it
# at length.  The last test is of the checker: it must see what is wrong.

load common

checker=$BATS_TEST_DIRNAME/clients/consistency

# consistent MODEL CLIENT-OPTION...
consistent ()
{
  local model=$1
  shift
  serve "$wbcache" model="$model" summary="$summary" size=16M flushdelay=200 \
    readdelay=50 filldelay=100 writedelay=50 fua=native
  run -0 "$checker" --seconds=2 "$@" "$uri"
  stop_server
  none overlaps after_close foreign_thread dirty_dropped_at_close
}

@test "parallel" { consistent parallel --reads-first --commands-in-flight; }

@test "parallel, clients come and go" { consistent parallel --churn; }

@test "requests serialized" { consistent requests --reads-first; }

@test "requests serialized, clients come and go" {
  consistent requests --churn --hard-cuts
}

@test "all requests serialized, clients come and go" {
  consistent all --churn --hard-cuts
}

@test "the checker sees what unsafe breaks" {
  serve MCSHIM_MODE=unsafe "$wbcache" size=16M
  run -1 "$checker" --seconds=1 "$uri"
}

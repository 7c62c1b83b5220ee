load common
@test "one" { serve "$wbcache"; client <<<"conn()"; stop_server; }
@test "two" { serve "$wbcache"; client <<<"conn()"; stop_server; }
@test "three" { serve "$wbcache"; client <<<"conn()"; stop_server; }
@test "four" { serve "$wbcache";  client <<<"conn()"; stop_server; }
@test "five" { serve "$wbcache";  client <<<"conn()"; stop_server; }

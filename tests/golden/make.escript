#!/usr/bin/env escript
%%! -noinput
%% Writes, for every line of terms.txt, what this Erlang makes of its first column into the last:
%%
%%     escript tests/golden/make.escript tests/golden/terms.txt
%%
%% A line is `Erlang expression -> Python expression -> bytes in hexadecimal`. The bytes are those of
%% term_to_binary/2 with UTF-8 atoms, without the version byte 131. Comments begin with "# " and stay
%% as they are, but for the one that names the release.

main([File]) ->
    {ok, Text} = file:read_file(File),
    Lines = string:split(string:trim(Text, trailing, "\n"), "\n", all),
    ok = file:write_file(File, [[line(Line), "\n"] || Line <- Lines]).

line(<<"# OTP ", _/binary>>) ->
    ["# OTP ", erlang:system_info(otp_release)];
line(<<"# ", _/binary>> = Comment) ->
    Comment;
line(<<>>) ->
    <<>>;
line(Line) ->
    [Erlang, Python | _] = string:split(Line, " -> ", all),
    <<131, Bytes/binary>> = term_to_binary(value(Erlang), [{minor_version, 2}]),
    [Erlang, " -> ", Python, " -> ", string:lowercase(binary:encode_hex(Bytes))].

value(Text) ->
    {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Text) ++ "."),
    {ok, Expressions} = erl_parse:parse_exprs(Tokens),
    {value, Value, _} = erl_eval:exprs(Expressions, []),
    Value.

#!/usr/bin/env escript
%%! -noinput +sbwt none +sbwtdcpu none +sbwtdio none
%% A real Erlang to ask about the external term format: packets of four length bytes on standard
%% input and output, one answer for each.
%%
%% <<0, Bytes>>               the term in Bytes (131 first), as this Erlang writes it: <<1, Bytes>>
%% <<1, Bytes>>               the same, compressed
%% <<2, Size:32, Bytes, Text>> whether it is the term that Text is the source of: <<1>> or <<0, Why>>
%% <<3>>                      the OTP release: <<1, Text>>
%%
%% Whatever it cannot read is answered with <<0, Why>>. It ends when standard input does.

main([]) ->
    loop(open_port({fd, 0, 1}, [binary, eof, {packet, 4}])).

loop(Port) ->
    receive
        {Port, {data, Request}} ->
            Answer = try answer(Request)
                     catch Class:Reason -> [0, io_lib:format("~w: ~w", [Class, Reason])]
                     end,
            true = port_command(Port, Answer),
            loop(Port);
        {Port, eof} ->
            ok
    end.

answer(<<0, Bytes/binary>>) ->
    [1, term_to_binary(binary_to_term(Bytes), [{minor_version, 2}])];
answer(<<1, Bytes/binary>>) ->
    [1, term_to_binary(binary_to_term(Bytes), [{minor_version, 2}, {compressed, 9}])];
answer(<<2, Size:32, Bytes:Size/binary, Text/binary>>) ->
    Term = binary_to_term(Bytes),
    case parse(Text) of
        Term -> [1];
        Other -> [0, io_lib:format("~w is not ~w", [Term, Other])]
    end;
answer(<<3>>) ->
    [1, erlang:system_info(otp_release)].

parse(Text) ->
    {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Text) ++ "."),
    {ok, Term} = erl_parse:parse_term(Tokens),
    Term.

/*
 * Handles of environments. When the last reference to one is dropped, the process that was given
 * as its collector gets {snex_env_dropped, Binary}.
 *
 * A handle holds no environment of terms: 100,000 of them take 100,000 times some 100 bytes.
 */
#include <erl_nif.h>
#include <string.h>

typedef struct {
    ErlNifPid collector;
    int armed;
    size_t size;
    unsigned char data[];
} Handle;

static ErlNifResourceType *handle_type;

static void dropped(ErlNifEnv *env, void *object)
{
    Handle *handle = object;
    if (!handle->armed)
        return;
    ErlNifEnv *message = enif_alloc_env();
    ERL_NIF_TERM data;
    memcpy(enif_make_new_binary(message, handle->size, &data), handle->data, handle->size);
    /* A collector that is gone needs no message: its environments have gone with it. */
    enif_send(env, &handle->collector, message,
              enif_make_tuple2(message, enif_make_atom(message, "snex_env_dropped"), data));
    enif_free_env(message);
}

static ERL_NIF_TERM make(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
    ErlNifPid collector;
    ErlNifBinary data;
    (void)argc;
    if (!enif_get_local_pid(env, argv[0], &collector) || !enif_inspect_binary(env, argv[1], &data))
        return enif_make_badarg(env);
    Handle *handle = enif_alloc_resource(handle_type, sizeof(Handle) + data.size);
    handle->collector = collector;
    handle->armed = 1;
    handle->size = data.size;
    memcpy(handle->data, data.data, data.size);
    ERL_NIF_TERM term = enif_make_resource(env, handle);
    enif_release_resource(handle);
    return term;
}

static ERL_NIF_TERM disarm(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
    void *object;
    (void)argc;
    if (!enif_get_resource(env, argv[0], handle_type, &object))
        return enif_make_badarg(env);
    ((Handle *)object)->armed = 0;
    return enif_make_atom(env, "ok");
}

static int open_type(ErlNifEnv *env)
{
    int flags = ERL_NIF_RT_CREATE | ERL_NIF_RT_TAKEOVER;
    handle_type = enif_open_resource_type(env, NULL, "snex_env", dropped, flags, NULL);
    return handle_type == NULL;
}

static int load(ErlNifEnv *env, void **private, ERL_NIF_TERM info)
{
    (void)private;
    (void)info;
    return open_type(env);
}

static int upgrade(ErlNifEnv *env, void **private, void **old, ERL_NIF_TERM info)
{
    (void)private;
    (void)old;
    (void)info;
    return open_type(env);
}

static ErlNifFunc functions[] = {{"make", 2, make, 0}, {"disarm", 1, disarm, 0}};

ERL_NIF_INIT(Elixir.Snex.Nif, functions, load, NULL, upgrade, NULL)

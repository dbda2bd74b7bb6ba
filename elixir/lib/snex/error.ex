defmodule Snex.Error do
  @moduledoc """
  What goes wrong, as a value in `{:error, error}` and as an exception.

  | `code` | means | `reason` |
  |---|---|---|
  | `:python_runtime_error` | the code raised, or a value could not be converted | `str(exception)`, or the name of its type where that is empty |
  | `:response_timeout` | no answer in time; the Python work has been cancelled | |
  | `:cancelled` | the work was stopped | why |
  | `:env_not_found` | the environment has been destroyed | |
  | `:env_key_not_found` | a variable is not there | its name |
  | `:call_failed` | the interpreter ended before it answered | its exit reason; `:noproc` when it had ended before |
  | `:interpreter_exited` | the Python process ended, or could not be started | `{:exit_status, status}`: above 128 it was ended by the signal `status - 128`, 127 and 126 are those of a program that is not there or cannot be run; or why the connection to it was lost |
  | `:init_script_timeout` | the init script took too long | |
  | `:overloaded` | too many calls wait for a member of a pool, or for a thread of Python, or this one waited too long; nothing has run | what to do |
  | `:killed` | the code did not end within `kill_after` when its time was over, so Python was killed | a sentence |
  | `:memory_limit` | Python held more than its `max_memory` and was killed while the call was under way | a sentence |
  | `:worker_exited` | the worker process of Python that ran the code has ended | how |
  | `:bad_request` | Python did not understand the request | what it expects |
  | `:internal_error` | a defect of this library, or of the system it runs on | |

  `traceback` is the list of strings that Python's `traceback.format_exception` gives, and `type` the
  name of the exception's type (`"KeyError"`, `"json.decoder.JSONDecodeError"`; that of a type which
  the code defined has no module). Both are nil where Python raised no exception. `details` is a
  sentence for people, where there is more to tell than `reason` does; `message/1` shows it.
  """

  @type python_runtime_error :: :python_runtime_error
  @type internal_error :: :internal_error
  @type env_not_found :: :env_not_found
  @type env_key_not_found :: :env_key_not_found
  @type init_script_timeout :: :init_script_timeout
  @type response_timeout :: :response_timeout
  @type call_failed :: :call_failed
  @type interpreter_exited :: :interpreter_exited
  @type bad_request :: :bad_request
  @type cancelled :: :cancelled
  @type overloaded :: :overloaded
  @type killed :: :killed
  @type memory_limit :: :memory_limit
  @type worker_exited :: :worker_exited

  @typedoc "What went wrong; the table above says when."
  @type error_code ::
          python_runtime_error()
          | internal_error()
          | env_not_found()
          | env_key_not_found()
          | init_script_timeout()
          | response_timeout()
          | call_failed()
          | interpreter_exited()
          | bad_request()
          | cancelled()
          | overloaded()
          | killed()
          | memory_limit()
          | worker_exited()

  @type t :: %__MODULE__{
          code: error_code(),
          reason: term(),
          traceback: [String.t()] | nil,
          type: String.t() | nil,
          details: String.t() | nil
        }

  defexception [:code, :reason, :traceback, :type, :details]

  @doc """
  The error as text, with the Python traceback where there is one.

      iex> Snex.Error.message(%Snex.Error{code: :interpreter_exited, reason: {:exit_status, 1}})
      "interpreter_exited: {:exit_status, 1}"

      iex> Snex.Error.message(%Snex.Error{code: :interpreter_exited, reason: {:exit_status, 139}})
      "interpreter_exited: {:exit_status, 139} (SIGSEGV)"
  """
  @impl Exception
  @spec message(t()) :: String.t()
  def message(%__MODULE__{} = error) do
    # What comes from Python has no details.
    head = "#{error.code}#{reason(error.reason)}#{reason(Map.get(error, :details))}"

    case error.traceback do
      [_ | _] = lines -> head <> "\n\n" <> String.trim_trailing(IO.iodata_to_binary(lines))
      _ -> head
    end
  end

  defp reason(nil), do: ""
  defp reason(reason) when is_binary(reason), do: ": " <> reason

  defp reason({:exit_status, status} = reason) do
    name = Snex.OSProcess.signal_name(status)
    ": " <> inspect(reason) <> if(name, do: " (#{name})", else: "")
  end

  defp reason(reason), do: ": " <> inspect(reason)
end

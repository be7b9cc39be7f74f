#include "config/completion.h"

#include "config/manual.h"
#include "config/names.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

std::string joined(const std::vector<std::string>& words, const std::string& between = " ") {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : between) + word;
  return text;
}

template <size_t N>
std::vector<std::string> words_of(const char* const (&words)[N], const std::string& after = "") {
  std::vector<std::string> all;
  for (const char* word : words) all.push_back(word + after);
  return all;
}

/// The options of a command; nullopt-like "": all of them.
std::vector<std::string> option_names(const std::string& command) {
  std::vector<std::string> names;
  for (const Option& option : options()) {
    if (command.empty() || belongs(option, parse_command(command))) names.push_back(option.name);
  }
  names.push_back("--help");
  if (command.empty()) names.insert(names.end(), {"--version", "--completion"});
  return names;
}

bool takes_paths(const std::string& key) {
  for (const char* name :
       {"model", "output", "work", "calibration.files", "evaluation.perplexity", "evaluation.tasks", "evaluation.reference"}) {
    if (key == name) return true;
  }
  return false;
}

/// What bash and zsh share: functions that print what may stand somewhere, a candidate a line.
std::string shared_functions() {
  std::string text = "_hcsmoe_dist_options() {\n  case $1 in\n";
  for (const std::string& command : command_names()) {
    text += "    " + command + ") printf '%s\\n' " + joined(option_names(command)) + " ;;\n";
  }
  text += "    *) printf '%s\\n' " + joined(option_names("")) + " ;;\n  esac\n}\n";
  text += "_hcsmoe_dist_values() {\n  case $1 in\n";
  for (const std::string& key : configuration_keys()) {
    const auto names = names_for_key(key);
    if (!names.empty()) text += "    " + key + ") printf '%s\\n' " + joined(names) + " ;;\n";
  }
  text += "  esac\n}\n";
  std::vector<std::string> with_paths;
  for (const std::string& key : configuration_keys()) {
    if (takes_paths(key)) with_paths.push_back(key);
  }
  text += "_hcsmoe_dist_takes_paths() { case $1 in " + joined(with_paths, " | ") + ") return 0 ;; *) return 1 ;; esac; }\n";
  return text + "_hcsmoe_dist_command() {\n  local word\n  for word; do\n    case $word in " + joined(command_names(), " | ") +
         ") printf '%s' \"$word\"; return ;; esac\n  done\n}\n";
}

std::string bash_script() {
  // Words are taken from the line itself: '=' parts COMP_WORDS where COMP_WORDBREAKS has it, and then only what follows it is replaced.
  return "# bash completion of hcsmoe_dist: source <(hcsmoe_dist --completion bash)\n" + shared_functions() + R"(_hcsmoe_dist() {
  local line=${COMP_LINE:0:COMP_POINT} current previous command path='' candidates=() found=() words=() name i
  current=${line##*[[:space:]]}
  read -ra words <<<"${line%"$current"}"
  previous=${words[${#words[@]} - 1]}
  command=$(_hcsmoe_dist_command "${words[@]:1}")
  case $previous in
    --set)
      if [[ $current == *=* ]]; then
        mapfile -t candidates < <(_hcsmoe_dist_values "${current%%=*}")
        candidates=("${candidates[@]/#/${current%%=*}=}")
        if _hcsmoe_dist_takes_paths "${current%%=*}"; then path=${current#*=}; fi
      else
        candidates=()" +
         joined(configuration_keys()) + R"()
        candidates=("${candidates[@]/%/=}")
      fi ;;
    --machine) candidates=()" +
         joined(words_of(machine_rates, "=")) + R"() ;;
    --completion) candidates=()" +
         joined(words_of(shells)) + R"() ;;
    help) candidates=()" +
         joined(command_names()) + R"() ;;
    --plan | --trace | --original) path=$current ;;
    *)
      if [[ $current == -* ]]; then
        mapfile -t candidates < <(_hcsmoe_dist_options "$command")
      else
        [[ -n $command ]] || candidates=()" +
         joined(command_names()) + R"( help)
        path=$current
      fi ;;
  esac
  COMPREPLY=()
  for name in "${candidates[@]}"; do
    [[ $name != "$current"* ]] || COMPREPLY+=("$name")
  done
  if [[ -n $path || $previous == --plan || $previous == --trace || $previous == --original || $current == *=* || ${#candidates[@]} == 0 || $current != -* ]]; then
    case $previous in
      --machine | --completion | help) ;;
      --set)
        if [[ $current == *=* ]] && _hcsmoe_dist_takes_paths "${current%%=*}"; then
          mapfile -t found < <(compgen -f -- "$path")
          COMPREPLY+=("${found[@]/#/${current%%=*}=}")
        fi ;;
      --plan | --trace | --original) mapfile -t COMPREPLY < <(compgen -f -- "$path") ;;
      *)
        mapfile -t found < <(compgen -f -- "$current")
        for name in "${found[@]}"; do
          if [[ -d $name ]]; then
            COMPREPLY+=("$name/")
          elif [[ $name == *.yaml || $name == *.yml || $name == *.json ]]; then
            COMPREPLY+=("$name")
          fi
        done ;;
    esac
  fi
  if ((${#COMPREPLY[@]} == 1)) && [[ ${COMPREPLY[0]} == */ || ${COMPREPLY[0]} == *= ]]; then compopt -o nospace 2>/dev/null; fi
  if [[ $current == *=* && $COMP_WORDBREAKS == *=* ]]; then
    for i in "${!COMPREPLY[@]}"; do COMPREPLY[i]=${COMPREPLY[i]#*=}; done
  fi
}
complete -F _hcsmoe_dist hcsmoe_dist
)";
}

std::string zsh_script() {
  return "#compdef hcsmoe_dist\n# zsh completion of hcsmoe_dist: source <(hcsmoe_dist --completion zsh), after compinit\n" +
         shared_functions() +
         R"(_hcsmoe_dist() {
  local current=$words[CURRENT] previous=$words[CURRENT-1]
  local command=$(_hcsmoe_dist_command ${words[2,CURRENT-1]})
  case $previous in
    --set)
      if [[ $current == *=* ]]; then
        local key=${current%%=*}
        compset -P '*='
        if _hcsmoe_dist_takes_paths $key; then _files; else compadd -- $(_hcsmoe_dist_values $key); fi
      else
        compadd -S = -- )" +
         joined(configuration_keys()) + R"(
      fi ;;
    --machine) compadd -S = -- )" +
         joined(words_of(machine_rates)) + R"( ;;
    --completion) compadd -- )" +
         joined(words_of(shells)) + R"( ;;
    help) compadd -- )" +
         joined(command_names()) + R"( ;;
    --plan | --trace | --original) _files ;;
    *)
      if [[ $current == -* ]]; then
        compadd -- $(_hcsmoe_dist_options $command)
      else
        [[ -n $command ]] || compadd -- )" +
         joined(command_names()) + R"( help
        _files -g '*.(yaml|yml|json)'
      fi ;;
  esac
}
compdef _hcsmoe_dist hcsmoe_dist
)";
}

/// For single quotes of fish.
std::string quoted(const std::string& text) {
  std::string result;
  for (const char c : text.substr(0, text.find('\n'))) result += c == '\'' || c == '\\' ? std::string("\\") + c : std::string(1, c);
  return "'" + result + "'";
}

std::string fish_script() {
  using enum Option::Takes;
  const std::string complete = "complete -c hcsmoe_dist ";
  std::string text = "# fish completion of hcsmoe_dist: hcsmoe_dist --completion fish | source\n";
  text += "function __hcsmoe_dist_set\n  set -l names " + joined(configuration_keys()) + "\n  for name in $names\n    echo $name=\n  end\n";
  for (const std::string& key : configuration_keys()) {
    for (const std::string& name : names_for_key(key)) text += "  echo " + key + "=" + name + "\n";
  }
  text += "end\n";
  const std::string seen = "__fish_seen_subcommand_from ";
  for (const std::string& command : command_names()) {
    text += complete + "-n 'not " + seen + joined(command_names()) + "' -a " + command + " -d " +
            quoted(purpose_of(parse_command(command))) + "\n";
  }
  text += complete + "-n 'not " + seen + joined(command_names()) + " help' -a help\n";
  text += complete + "-f -n '" + seen + "help' -a '" + joined(command_names()) + "'\n";
  for (const Option& option : options()) {
    text += complete + "-l " + option.name.substr(2);
    if (!option.commands.empty()) {
      std::string names;
      for (const Command command : option.commands) names += " " + to_string(command);
      text += " -n '" + seen + names.substr(1) + "'";
    }
    if (option.takes == assignment) text += " -x -a '(__hcsmoe_dist_set)'";
    if (option.takes == rate) text += " -x -a '" + joined(words_of(machine_rates, "=")) + "'";
    if (option.takes == file) text += " -r -F";
    text += " -d " + quoted(option.help) + "\n";
  }
  return text + complete + "-l completion -x -a '" + joined(words_of(shells)) + "'\n" + complete + "-l version\n" + complete +
         "-s h -l help\n";
}

}  // namespace

std::string completion_script(const std::string& shell) {
  if (shell == "bash") return bash_script();
  if (shell == "zsh") return zsh_script();
  if (shell == "fish") return fish_script();
  throw UserError("--completion " + shell + ": there is a script for " + joined(words_of(shells), ", "));
}

}  // namespace hcsmoe

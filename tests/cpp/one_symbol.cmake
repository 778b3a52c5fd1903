# An object compiled for an instruction set must define one external symbol, its table of kernels. An
# inline function of a header would be merged by the linker with other copies, and the copy it keeps
# could be the one that older processors cannot run.
#   cmake -DNM=nm -DOBJECTS=a.o,b.o -P one_symbol.cmake
string(REPLACE "," ";" OBJECTS "${OBJECTS}")
foreach(object IN LISTS OBJECTS)
  execute_process(
    COMMAND "${NM}" --extern-only --defined-only "${object}"
    OUTPUT_VARIABLE symbols
    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY
  )
  string(REGEX MATCHALL "[^\n]+" lines "${symbols}")
  list(LENGTH lines count)
  if(NOT count EQUAL 1 OR NOT symbols MATCHES "_table")
    message(SEND_ERROR "${object} defines ${count} external symbols:\n${symbols}")
  endif()
endforeach()

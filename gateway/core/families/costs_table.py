"""The table of costs: each name in a section of its API, behind its cost.

`deploy/costs.py` draws it from the types of requests in openai 3.51.0, anthropic 2.10.0, google-genai 3.3.0 and
botocore 1.44.5; sections `by hand` have names that no SDK has. To add a tool of next month, install the SDK,
run that program, and move the new name from `unknown` to its cost.

- `tools`, by `type` (Gemini, Bedrock: by member): a `free` one costs its tokens alone, and so does a `safe` one, by
  which nothing is changed: the caller runs it, or it only reads. A `group` has tools inside; a `name` only names
  one; `like` is another API. Else the cost is the name of a price.
- `limits`, the types of tools that take a maximum of uses: of a tool, or of another model.
- `tokens`, by a tool as in `tools`: the most tokens that its provider adds to the prompt for it, beside its JSON. A
  tool without a row adds as many as the dearest of its API.
- `quotes`, types of parts and tools that have an address or id only to name it, by the member that has it.
- `options`, members at the top of a body that make a provider use a tool unless they say no: its price.
- `parts`, all other values of `type`, and `fields`, the members of parts without one: `text`, `picture`,
  `pages`, `sound`, `video`; `stated` is the medium that its type states, `source` that of the part around it,
  and `parts` costs what it holds. A `setting` is no part of a prompt.
- `members`, those that are a text or an open object: each may name a `model` or an `object`, hold a `medium` or
  `parts`, or be `data` that the caller writes freely. `nothing` does none of it. In `all members` are those of
  any API, with lists of `models` that may answer instead.

A tool that is `unknown`, or has no row, is refused by its type where money decides.
"""

from typing import Final

ROWS: Final = """\
[openai tools]
# A program has no container, and `tool_usage` of answers counts none (openai 3.51.0).
safe: apply_patch computer computer_use_preview custom function local_shell shell:local
free: mcp programmatic_tool_calling tool_search
group: namespace
web_search: web_search web_search_2025_08_26
web_search_preview: web_search_preview web_search_preview_2025_03_11
file_search: file_search
code_interpreter: code_interpreter
image_generation: image_generation
shell: shell shell:container_auto shell:container_reference
unknown: automations computer_use

[openai tools by hand]
# OpenRouter's: only the time is free (openrouter.ai/tool/datetime, 2026-11-30)
free: openrouter:datetime
image_generation: openrouter:image_generation
shell: openrouter:shell
web_fetch: openrouter:web_fetch
# and Mistral's
web_search: openrouter:web_search web_search_premium

[openai plugins by hand]
free: response-healing
web_search: web

[openai options by hand]
# of Alibaba, Baidu and Tencent, 2026-11-30
web_search: enable_enhancement enable_search force_search_enhancement search_strategy web_search
code_interpreter: enable_code_interpreter

[openai parts]
picture: computer_screenshot image image_file image_url input_image
pages: file input_file
sound: audio audio_sample input_audio input_audio_buffer.append output_audio session.input_audio.append
  session.input_audio_buffer.append
parts: agent_message computer_call_output custom_tool_call_output function_call_output message
  multi_agent_call_output
text: additional_tools apply_patch_call apply_patch_call_output code_interpreter_call compaction
  compaction_trigger computer_call configuration_update custom_tool_call encrypted_content
  file_search_call function_call image_generation_call input_json input_text item_reference
  local_shell_call local_shell_call_output mcp_approval_request mcp_approval_response mcp_call
  mcp_list_tools multi_agent_call output_text program program_output reasoning reasoning_text refusal
  shell_call shell_call_output summary_text text tool_search_call tool_search_output web_search_call
setting: agent.session.input.cancel agent.session.input.computer_use_approval_request_result
  agent.session.input.mcp_approval_request_result agent.session.input.message
  agent.session.input.tool_result allowed_tools allowlist and approximate audio/pcm audio/pcma audio/pcmu
  auto base64 browser_authentication browser_origin_access choice click client client_secret_basic
  client_secret_post completions container_auto container_file_citation container_reference content
  conversation.item.create conversation.item.delete conversation.item.retrieve conversation.item.truncate
  create_file custom decision.create decision.item.create decision.item.delete decisions delete_file
  direct disabled double_click dpo drag environment_variable eq exec existing_session exit far_field
  file_citation file_content file_id file_path find_in_page function grammar gt gte http http_error in
  inline input_audio_buffer.clear input_audio_buffer.commit json_object json_schema jsonl keypress
  label_model last_messages limited live local logs lt lte mcp_oauth mcp_protocol_error mcp_tool_call
  mcp_tool_execution_error move multi ne near_field new_session nin none once open_page openai_hosted or
  output_audio_buffer.clear periodic predicate prompt protocol_error python realtime reinforcement
  response.cancel response.create response.inject response.item.create response.steer responses
  retention_ratio score score_model screenshot scroll search self_hosted semantic_vad server_vad
  session.close session.commentary.append session.input_audio.mute session.input_audio.unmute
  session.instructions.append session.output_audio.fixture.play session.start session.thinking.append
  session.update skill_reference static static_bearer stdio stored_completions string_check supervised
  template text_similarity timeout tool_execution_error transcription transcription_session.update
  transport.dtmf.send type unrestricted update_file url url_citation wait wandb webrtc

[openai parts by hand]
# of vLLM, Mistral and Codex; of Jina, Qwen-VL and Volcengine
picture: image_embeds output_image
pages: document_url pdf
sound: audio_embeds audio_url
video: input_video video video_url
parts: message.input message.output
text: agent.handoff context_compaction function.call function.result reference tool.execution tool_file
# of openai 3.57.0
setting: speech

[all quotes by hand]
# of types of parts, results and tools: the member with an address or id that nobody reads as a medium
file_id: container_file_citation file_citation file_path
server_url: mcp
url: find_in_page open_page url_citation web_fetch_result web_search_result web_search_result_location

[all members by hand]
# A member is a model's by the end of its name, so that `judge_model` is one too.
model: model model_arn model_id model_ids model_name modelarn modelid modelname models
# Of upstreams in front of others (OpenRouter, LiteLLM).
models: content_policy_fallbacks context_window_fallback_dict context_window_fallbacks default_fallbacks
  fallback fallback_model fallback_models fallbacks
# Ids that callers choose: of tool calls, users, requests, and lines of a file.
nothing: call_id connector_id custom_id request_id session_id tool_call_id tool_use_id trace_id user_id

[openai members by hand]
# of Mistral; of the account itself, to which no route leads; of Gemini behind this API (its docs on OpenAI)
object: actor_ids api_key_ids cached_content cachedcontent certificate_ids document_id external_id
  external_key_id from_entry_id group_ids kms_project_id library_id library_ids model_ids resource_ids
  role_id service_account_id subscription_id tenant_id user_ids workload_identity_pool_id
  workload_identity_provider_id
# of openai 3.57.0
unknown: continuation_id

[openai members]
object: approval_request_id assistant_id client_id comparison_response_id container container_id
  conversation conversation_id credential_id delegation_id environment_id environment_template_id eval_id
  field_id file_id file_ids id input_file_id item_id part_ids previous_item_id previous_response_id
  project_id project_ids response_id run_id skill_id stream_id subagent_id thread_id training_file
  tunnel_id turn_id validation_file vault_id vault_ids vector_store_id vector_store_ids
model: model
medium: audio audio_sample data file file_data file_url files image image_url input_reference
  known_speaker_references mask recording result url video
parts: content input instructions item output prompt source system
data: args arguments attributes env env_vars filters headers input_schema item_schema logit_bias metadata
  output_schema parameters request_metadata sample schema state_variables tools variables
nothing: access_token additional_instructions after agent_id agent_name allowed_client_events
  allowed_domains allowed_hosts allowed_tools annotations author authorization before blocked_domains
  calculate_output call_id caller_id capability_directories categories city client_secret code command
  commands consent country cwd default_version definition description detail diff domain encrypted_content
  entity error event event_id expires_at expression filename fingerprint group_id idempotency_key
  image_tag include instructions_search item_reference key keys keywords known_speaker_names label labels
  language languages logs markup mcp_server_url md5 message mime_type mode model_sample name namespace npm
  page param passing_labels path pattern personality project prompt_cache_key purpose python queries query
  reason recipient reference refresh_token refusal region request_id resource response_event
  revised_prompt role safety_identifier scope script_hint sdp secret_name secret_value selected_option
  server_description server_label server_url session_id size status stderr stdout stop suffix tags
  target_uri text timezone title token token_endpoint tool_call_id tool_choice tool_names transcript type
  user users value version voice workflow_name working_directory workspace_directory

[anthropic tools]
safe: bash_20241022 bash_20250124 browser_toolset_20260801 computer_20241022 computer_20250124
  computer_20251124 computer_toolset_20260801 custom memory_20250818 text_editor_20241022
  text_editor_20250124 text_editor_20250429 text_editor_20250728
free: advisor_20260301 mcp_toolset tool_search_tool_bm25 tool_search_tool_bm25_20251119
  tool_search_tool_regex tool_search_tool_regex_20251119 web_fetch_20250910 web_fetch_20260209
  web_fetch_20260309 web_fetch_20260318
group: tool_definition
name: mcp_tool_reference mcp_toolset_reference tool_reference
web_search: web_search_20250305 web_search_20260209 web_search_20260318
code_execution: code_execution_20250522 code_execution_20250825 code_execution_20260120
  code_execution_20260521
unknown: agent_toolset_20260401

[anthropic limits]
model: advisor_20260301
tool: web_fetch_20250910 web_fetch_20260209 web_fetch_20260309 web_fetch_20260318 web_search_20250305
  web_search_20260209 web_search_20260318

[anthropic tokens by hand]
# Of platform.claude.com/docs/en/about-claude/pricing, 2026-11-30: the dearest model of each. Those of a computer have
# 735 and up to 499 of a system prompt; the toolsets about 4,590, and 6,670 with 880 of optional members.
0: custom
325: bash_20241022 bash_20250124
700: text_editor_20241022 text_editor_20250124 text_editor_20250429 text_editor_20250728
1234: computer_20241022 computer_20250124 computer_20251124
4600: computer_toolset_20260801
7600: browser_toolset_20260801

[anthropic parts]
source: base64 content file url
picture: image
pages: document
parts: code_execution_result mcp_tool_result search_result tool_result web_fetch_result
  web_fetch_tool_result
text: advisor_tool_result bash_code_execution_tool_result browser_state code_execution_tool_result
  compaction container_upload fallback mcp_tool_listing mcp_tool_use redacted_thinking server_tool_use
  text text_editor_code_execution_tool_result thinking tool_addition tool_reference tool_removal
  tool_search_tool_result tool_use web_fetch_tool_result_error web_search_tool_result
setting: adaptive advisor advisor_redacted_result advisor_result advisor_tool_result_error agent
  agent_with_overrides all always_allow always_ask anthropic any approximate auto aws_role bash
  bash_code_execution_output bash_code_execution_result bash_code_execution_tool_result_error
  between_tools billing_policy branch char_location clear_thinking_20251015 clear_tool_uses_20250919
  client_secret_basic client_secret_post cloud code_execution_20250825 code_execution_20260120
  code_execution_output code_execution_tool_result_error commit compact_20260112 content_block_location
  content_sha256 continue coordinator create create_new cron custom direct disabled download_completed
  download_failed download_started edit enabled encrypted_code_execution_result environment_variable
  ephemeral except github_repository glob grep high input_tokens json_schema limit limited low max
  mcp_oauth medium memory_store multiagent_20261001 none object only packages page_location read redacted
  search_result_location self self_hosted service_account sessions static_bearer summarize system.message
  tab_opened text_editor_code_execution_create_result text_editor_code_execution_str_replace_result
  text_editor_code_execution_tool_result_error text_editor_code_execution_view_result thinking_turns
  tokens tool tool_search_tool_result_error tool_search_tool_search_result tool_uses unrestricted
  update_existing user.custom_tool_result user.define_outcome user.interrupt user.message
  user.tool_confirmation user.tool_result web_fetch web_search web_search_result
  web_search_result_location web_search_tool_result_error write xhigh

[anthropic members by hand]
# of answers and lists; and of the account: who pays is the operator's to say
object: actor_ids agent_ids api_key_ids channel_id claude_tag_user_ids created_by_user_id deployment_ids
  environment_ids external_key_id issuer_id marketplace_id organization_id organization_ids owner_user_id
  plugin_id rbac_group_ids served_version_id slack_channel_id slack_channel_ids slack_workspace_id
  tenant_id user_ids user_profile_ids workspace_ids

[anthropic members]
object: after_id agent agent_id agents anthropic_worker_id api_key_id before_id client_id container
  deployment_id environment_id external_id file_id id ids memory_id memory_store_id predefined_agents
  previous_message_id reference_id scope_id service_account_id session_ids session_thread_id skill_id
  user_profile_id vault_id vault_ids workspace_id
model: model
medium: data file files url
parts: content source system
data: configs input input_examples input_schema metadata properties schema
nothing: access_token allowed_domains allowed_hosts allowed_tools amount apt authorization_token betas
  blocked_domains ca_certificate_pem cargo cited_text city clear_tool_inputs client_secret content_sha256
  context country created_at_gt created_at_gte created_at_lt created_at_lte custom_id custom_tool_use_id
  deny_message description display_name document_title download_id email_hash encrypted_content
  encrypted_index encrypted_stdout error error_message exclude_tools expected_content_sha256
  expected_last_heartbeat expires_at expression external_user_onboarded_at fallback_credit_token gem go
  inference_geo instructions lines mcp_server_name mcp_server_url media_type mount_path name name_hash npm
  onboarded_at page page_age path path_prefix pip reason refresh_token region required resource
  retrieved_at role_arn scope secret_name secret_value server_name session_id sha signature stderr stdout
  stop_reason stop_sequences tab_id text thinking timezone title token token_endpoint tool_id tool_name
  tool_use_id toolset_name trigger user_id version

[gemini tools]
safe: codeExecution code_execution computerUse computer_use function functionDeclarations urlContext
  url_context
free: mcpServers mcp_server
web_search: googleSearch googleSearchRetrieval google_search
file_search: fileSearch file_search
google_maps: googleMaps google_maps
enterprise_web_search: enterpriseWebSearch
unknown: exaAiSearch parallelAiSearch retrieval

[gemini tokens by hand]
# Google documents no number: a computer has as many as Anthropic's, which is the dearest that is documented.
0: codeExecution enterpriseWebSearch fileSearch function functionDeclarations googleMaps googleSearch
  googleSearchRetrieval mcpServers mcp_server tool_search urlContext
4600: computerUse

[gemini tools by hand]
# Of google-genai 3.6.1: it loads definitions of tools, as at OpenAI and Anthropic.
free: tool_search

[gemini options by hand]
# Model Armor of Vertex AI is billed by the token, and no answer reports it.
model_armor: modelArmorConfig

[gemini parts by hand]
setting: function
text: tool_search_call tool_search_result

[gemini parts]
picture: image
pages: document
sound: audio
video: video
parts: code_execution_result function_result mcp_server_tool_result model_output thought user_input
text: code_execution_call file_search_call file_search_result function_call google_maps_call
  google_maps_result google_search_call google_search_result mcp_server_tool_call processing_call
  processing_result retrieval_call retrieval_result speech_metadata text url_context_call
  url_context_result
setting: antigravity civic_integrity code-mender dangerous_content deep-research dynamic file_citation gcs
  harassment hate_speech image_dangerous_content image_harassment image_hate image_sexually_explicit
  inline jailbreak place_citation remote repository sexually_explicit skill_registry smart static
  url_citation verbatim word_info

[gemini fields]
stated: fileData inlineData
parts: functionResponse
text: audioTranscription codeExecutionResult executableCode functionCall mediaProcessing mediaResolution
  partMetadata speechMetadata text thought thoughtSignature toolCall toolResponse videoMetadata

[gemini fields by hand]
stated: blob
# of google-genai 3.6.1
text: audioMetadata documentMetadata spreadsheetMetadata

[gemini members by hand]
nothing: function_names short_description visibleCells visible_cells

[gemini members]
object: cachedContent cached_content dataStore datastore datastores defaultCheckpointId engine environment
  environment_id fileName fileSearchStoreName fileSearchStoreNames file_name file_search_store_names
  handle id media_id name operationId operationName parent previous_interaction_id promptTemplateName
  ragCorpora ragCorpus ragFileIds rag_corpus rag_file_ids resourceName responseTemplateName review_id
  searchTemplate vertexDatasetName
model: embeddingModel model modelName model_name
medium: bigqueryUri consentAudio data document_uri downloadUri fileUri gcsUri imageBytes imageData uri url
  videoBytes voiceSampleAudio
parts: content contents input output prompt result source systemInstruction system_instruction
data: additionalProperties args arguments customConfigs custom_config custom_metadata default defs env
  example labels metadata parameters parametersJsonSchema partMetadata properties responseJsonSchema
  responseSchema response_format speechConfig tools transform userMetadata user_metadata value values
nothing: accessToken adaptationPhrases adaptation_phrases allowedFunctionNames apiKey apiKeySecret
  apiKeySecretVersion apiKeyString api_key aspectRatio avatarName call_id code continuationToken
  continuation_token credential credentialSecret customVocabulary custom_vocabulary description dest
  details diarization_mode displayName domain encoding endOffset end_offset endpoint enum excludeDomains
  excludedPredefinedFunctions excluded_predefined_functions filter finding_id format headers idToken
  imageMimeType imageSize index jsonPath key kmsKeyName language languageCode languageCodes language_codes
  language_hints message metadataFilter metadata_filter mimeType mode negativePrompt outputGcsUri
  outputMimeType outputUriPrefix pageToken path pattern personGeneration place_id propertyOrdering
  pubsubTopic queries ref referenceType required resolution responseMimeType responseModalities
  response_mime_type role search_suggestions server_name serviceAccount session_id sha256Hash signature
  sourceText source_text speaker speakerLabel src sseReadTimeout startOffset start_offset stopSequences
  stop_sequences stringValue style styleDescription subjectDescription target targetLanguageCode taskType
  text thoughtSignature timeout timestamp_granularities title ttl upscaleFactor uris urls videoMetadata
  voice voiceName widget_context_token word

[bedrock tools]
safe: cachePoint toolSpec
unknown: systemTool

[bedrock tools by hand]
# of InvokeModel
like: anthropic

[bedrock tokens by hand]
0: cachePoint toolSpec
like: anthropic

[bedrock fields]
picture: image
pages: document
sound: audio
video: video
parts: toolResult
text: cachePoint citationsContent guardContent json reasoningContent searchResult text toolAddition
  toolRemoval toolUse

[bedrock members]
object: guardrailIdentifier
model: modelId
medium: bytes redactedContent uri url
parts: source
data: additionalModelRequestFields input json requestMetadata schema
nothing: additionalModelResponseFieldPaths bucketOwner context description domain effort guardrailVersion
  message name serverName signature stopSequences text title toolUseId type

[cohere tools by hand]
safe: function

[ollama tools by hand]
safe: function
"""

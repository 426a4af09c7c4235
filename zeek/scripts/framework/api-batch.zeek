##! The head of a batch of rows, which public types refer to.

module ZeekAgentAPI;

export {
	## The result that a batch of rows belongs to. A result is sent as one or more batches.
	type Batch: record {
		## Id of the agent's event store. With a row's ``seq`` it identifies an event permanently.
		store: string;
		## Id derived from the query's content, the same across restarts of the agent and of Zeek.
		stream: string;
		## Events after this number
		low: count;
		## up to this one make up the result. Both are 0 for other tables.
		high: count;
		## Number of the batch within the result, from 0.
		index: count;
		## Whether it is the last one of the result.
		last: bool;
	};
}
